"""Run as a script: loads checkpoints in a process in which `hf_reformer` cannot be imported; prints a line of JSON each.

`python without_package.py JOBS`: a JSON list of [checkpoint, auto class, trust_remote_code, length, new tokens]; with
AutoImageProcessor the length is the height of an image whose values count up.
"""

import json
import sys


class NoPackage:
    """Stands before every other finder and finds our package nowhere."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("hf_reformer", "conversion"):
            raise ModuleNotFoundError(f"No module named {name!r} (kept away by the test)", name=name)


def answer(checkpoint, auto_class, trust, length, new_tokens):
    import torch
    import transformers

    try:
        model = getattr(transformers, auto_class).from_pretrained(checkpoint, trust_remote_code=trust).eval()
    except Exception as error:
        return {"error": str(error)}
    tokens = torch.arange(length)[None] % model.config.vocab_size
    with torch.no_grad():
        given = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
        output = model(tokens, **given)[0]
    result = {"class": f"{type(model).__module__}.{type(model).__name__}", "output": output.flatten().tolist()}
    if new_tokens:
        mask = torch.ones_like(tokens)
        generated = model.generate(tokens, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)
        result["generated"] = generated[0].tolist()
    return result


def tokens_of_image(checkpoint, auto_class, trust, height, _):
    import numpy
    import transformers

    processor = getattr(transformers, auto_class).from_pretrained(checkpoint, trust_remote_code=trust)
    image = numpy.arange(height * 5 * 3, dtype=numpy.uint8).reshape(height, 5, 3)
    name = f"{type(processor).__module__}.{type(processor).__name__}"
    return {"class": name, "output": processor(image)["input_ids"][0].tolist()}


if __name__ == "__main__":
    sys.meta_path.insert(0, NoPackage)
    for job in json.loads(sys.argv[1]):
        respond = tokens_of_image if job[1] == "AutoImageProcessor" else answer
        print("ANSWER " + json.dumps(respond(*job)), flush=True)
