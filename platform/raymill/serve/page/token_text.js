// Tokens as they are stored: [text, log-probability, [[text, log-probability], …]].

// Decode the bytes of tokens; a character may be spread over several tokens and belongs to the last of them.
export class TokenText {
  constructor() {
    this.decoder = new TextDecoder("utf-8");
  }

  read({ token, bytes, logprob, top_logprobs: likeliest = [] }) {
    const text = bytes ? this.decoder.decode(new Uint8Array(bytes), { stream: true }) : token;
    return [text, round(logprob), likeliest.map((other) => [other.token, round(other.logprob)])];
  }
}

// Four decimals are more than the page shows, and take a third of the room.
const round = (value) => Math.round(Math.max(value, -9999) * 1e4) / 1e4;
