"""Tiny, valid prepared folders without Ray, for tests of whatever reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from raymill.data.store.facts import BadInputs, Contamination
from raymill.data.store.manifest import (
    FORMAT_VERSION,
    DataManifest,
    PreparedData,
    Shard,
    Split,
    TokenizerIdentity,
    load_prepared,
    tokenizer_fingerprint,
    write_manifest,
)
from raymill.data.store.pack import Packer, dtype_for
from raymill.data.store.shards import ShardWriter

END_OF_TEXT_ID = 0


def write_prepared(
    folder: Path,
    *,
    sequence_length: int = 16,
    row_group_rows: int = 4,
    shard_rows: tuple[int, ...] = (22, 9, 1),
    validation_rows: tuple[int, ...] = (6,),
    vocab_size: int = 512,
    seed: int = 0,
    name: str = "tiny",
) -> PreparedData:
    """Write train shards of exactly `shard_rows` rows (the last row of each is short) and return
    it loaded.

    Every token but EOT counts one byte, except that each multiple of 3 counts two.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = _write_tokenizer(folder / "tokenizer", max(vocab_size, 257))
    dtype = dtype_for(vocab_size)

    def write(split: str, index: int, rows: int) -> Shard:
        # Between (rows - 1) and rows full rows are predicted; the documents' EOTs count too.
        predicted = (rows - 1) * sequence_length + int(random.integers(1, sequence_length + 1))
        packer = Packer(
            sequence_length=sequence_length,
            row_group_rows=row_group_rows,
            end_of_text_id=END_OF_TEXT_ID,
            dtype=dtype,
        )
        path = f"{split}/{index:05d}.parquet"
        with ShardWriter(folder, path, dtype=dtype, sequence_length=sequence_length) as writer:
            while predicted:
                length = min(predicted - 1, int(random.integers(0, 3 * sequence_length)))
                length = predicted - 1 if predicted - length - 1 < 1 else length
                tokens = random.integers(1, vocab_size, size=length)
                for group in packer.add(tokens, 1 + (tokens % 3 == 0)):
                    writer.write(group)
                predicted -= length + 1
            for group in packer.finish():
                writer.write(group)
            return writer.finish()

    splits = {
        "train": Split.from_shards(
            tuple(write("train", i, rows) for i, rows in enumerate(shard_rows))
        ),
        "validation": Split.from_shards(
            tuple(write("validation", i, rows) for i, rows in enumerate(validation_rows))
        ),
    }
    write_manifest(
        folder,
        DataManifest(
            format_version=FORMAT_VERSION,
            name=name,
            sequence_length=sequence_length,
            row_group_rows=row_group_rows,
            dtype=dtype,
            tokenizer=TokenizerIdentity(fingerprint, vocab_size, END_OF_TEXT_ID),
            splits=splits,
            inputs=(),
            documents=0,
            bad_inputs=BadInputs(0, ()),
            contamination=Contamination(13, "token", 0.0, 0.0, 0, 1.0),
            config={},
        ),
    )
    return load_prepared(folder)


def _write_tokenizer(folder: Path, vocab_size: int) -> str:
    """Byte-level without merges: id 0 is end of text, 1 to 256 are bytes, the rest fillers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    symbols += [f"<filler{index}>" for index in range(len(symbols) + 1, vocab_size)]
    vocab = {"<|endoftext|>": END_OF_TEXT_ID, **{text: i for i, text in enumerate(symbols, 1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|endoftext|>",
                "eos_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
            }
        )
    )
    return tokenizer_fingerprint(folder / "tokenizer.json")
