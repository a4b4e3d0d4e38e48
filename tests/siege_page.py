"""`python tests/siege_page.py` writes docs/siege.md from benchmarks/results/siege.json, what the last whole siege gave."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "siege.json", ROOT / "docs" / "siege.md"
# target, what was found, module that refuses it now, module of the tests that fail without that
MENDED = (
    ("rows (.jsonl)", "a damaged line ends the process: pyarrow 26.0.1 crashes", "training/rows", "test_train_rows"),
    ("configurations", "`id2label`, `label2id`, `dtype` of another kind: AttributeError, IndexError",
     "model/configuration_checks", "test_bad_inputs"),
    ("forwards", "`num_items_in_batch` that is no number: TypeError; a tensor of several gave several losses", "model/losses",
     "test_bad_inputs"),
    ("caches", "odd arguments of `crop`, `reorder_cache`, `batch_*`; reordering an empty cache: TypeError",
     "model/cache", "test_cache"),
    ("generation", "a prompt without tokens, a mask that is no tensor: IndexError, AttributeError", "model/generation",
     "test_generation"),
    ("tokenizer", "no text, no words, an odd `max_length`: errors out of Rust", "model/tokenization_reformer",
     "test_tokenization"),
    ("bytes and ids", "`decode_bytes` took text and fractions for ids, or raised TypeError", "model/tokenization_reformer",
     "test_tokenization"),
    ("image processor", "`first_values`, `crop_size` of another kind: TypeError, IndexError", "model/image_processing_reformer",
     "test_image_processing"),
    ("images from tokens", "tokens that are none, or lists in lists: TypeError", "model/image_processing_reformer",
     "test_image_processing"),
    ("image", "a damaged .ppm: an error that did not name the file", "model/image_processing_reformer", "test_image_processing"),
    ("model card", "no UTF-8, no YAML: an error of PyYAML's own, without the file", "training/verify_card", "test_model_cards"),
    ("rows to predict (.jsonl)", "no UTF-8: an error that did not name the file", "cli/predict", "test_predict"),
    ("SentencePiece model", "an empty file made a tokenizer that fails when it is used", "conversion/tokenizer_files",
     "test_conversion_transformers"),
    ("page", "temperatures near 0: NaN out of the drawing; 2**63 rounds: TypeError (both in `generate` too)",
     "cli/generate, model/inputs", "test_generate_command"),
)  # fmt: skip
HEAD = """# A siege

Public entries under arguments that hypothesis draws, readers under files that are damaged by chance and by atheris, which coverage
guides. *right*: a right result, as far as the target can tell (finite numbers, the output of the row alone, what went in).
*refused*: one `ValueError`, `TypeError` or `OSError` that was raised on purpose and says something. All else is a finding: another
error, one out of the depths, a wrong result, more than 20 s, a process that dies. For `command line`, whose refusals are
exit codes, *right* is both.

`make siege` runs all of it again, into `siege.json`; CI runs some 15 cases of each (`tests/test_siege.py`). Written by
`python tests/siege_page.py` from a siege of 2026-11-27 on one core (Python 3.11, `constraints.txt`; up to 700 cases and some 14 s a
target; the targets of what was mended last ran again afterwards, the others not).
"""


def page_of(results: dict) -> str:
    rows = [f"{sum(found['cases'] for found in results.values()):,} cases in {len(results)} targets.", ""]
    rows += ["| target | by | cases | right | refused | open findings |", "|---|---|---|---|---|---|"]
    for name, found in results.items():
        said = "; ".join(f"{x['times']} x {' '.join(x['finding'].split())}" for x in found["findings"]).replace(
            "|", "\\|"
        )
        count = f"{found['cases']} | {found['right']} | {found['refused']}"
        rows.append(f"| {name.replace(':', ': ', 1)} | {found.get('by', '')} | {count} | {said.replace('<', '&lt;')} |")
    rows += ["", "## Found and mended", "", "| target | found | refused in | test |", "|---|---|---|---|"]
    rows += [f"| {' | '.join(entry[:2])} | `{entry[2]}` | `{entry[3]}` |" for entry in MENDED]
    return "\n".join([HEAD, *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page_of(json.loads(RESULTS.read_text())), encoding="utf-8")
