"""HTTP in front of engines that decode: the API of OpenAI, its limits and its keys."""
