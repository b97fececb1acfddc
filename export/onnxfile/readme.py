"""README lines of an ONNX export: one request through onnxruntime, one through optimum, and Triton where it is laid out
for it."""

from __future__ import annotations

import json
from pathlib import Path

AUTO = {
    "ForSequenceClassification": ("ORTModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("ORTModelForTokenClassification", "token-classification"),
    "ForQuestionAnswering": ("ORTModelForQuestionAnswering", "question-answering"),
    "ForMultipleChoice": ("ORTModelForMultipleChoice", ""),
    "ForMaskedLM": ("ORTModelForMaskedLM", "fill-mask"),
    "WhisperForConditionalGeneration": ("ORTModelForSpeechSeq2Seq", "automatic-speech-recognition"),
    "ForConditionalGeneration": ("ORTModelForSeq2SeqLM", "text2text-generation"),
    "MTModel": ("ORTModelForSeq2SeqLM", "text2text-generation"),
}
NEWER = "TokenizersBackend"
"""What transformers 5 calls a PreTrainedTokenizerFast in what it writes; optimum's, 4.57, does not know the name."""
ASKED = {"question-answering": 'question="Who waits?", context="The keeper waits."', "fill-mask": None}


def lines(folder: Path) -> list[str]:
    """Markdown."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = (config.get("architectures") or [""])[0]
    auto, task = next((v for k, v in AUTO.items() if architecture.endswith(k)),
                      ("ORTModelForFeatureExtraction", "feature-extraction"))  # fmt: skip
    hears = task == "automatic-speech-recognition"
    writes = bool(config.get("is_encoder_decoder"))
    if (folder / "model" / "config.pbtxt").is_file() or (folder / "encoder_model" / "config.pbtxt").is_file():
        return _triton(folder)
    found = [] if writes else _session(auto)
    return found + _older(folder, _optimum(auto, task, hears))


def _older(folder: Path, asked: list[str]) -> list[str]:
    """The same with a tokenizer that transformers 4.57 knows, opened as 5 opens it."""
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if told.get("tokenizer_class") != NEWER:
        return asked
    names = told.get("model_input_names") or ["input_ids", "attention_mask"]  # 4.57 has another default
    opened = f'PreTrainedTokenizerFast.from_pretrained(".", model_input_names={names})'
    text = "\n".join(asked).replace('AutoTokenizer.from_pretrained(".")', opened)
    return text.replace("AutoTokenizer", "PreTrainedTokenizerFast").split("\n")


def _session(auto: str) -> list[str]:
    shown = {"ORTModelForSequenceClassification": "logits.argmax(-1)", "ORTModelForTokenClassification":
             "logits.argmax(-1)"}.get(auto, "logits.shape")  # fmt: skip
    return [
        "Asked with onnxruntime (`pip install onnxruntime transformers`), here:",
        "",
        "```python",
        "import onnxruntime",
        "from transformers import AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
        'made = dict(tokenizer(["One sentence.", "And another."], padding=True, return_tensors="np"))',
        'none = made["attention_mask"] * 0',
        'inputs = {i.name: made.get(i.name, none).astype("int64") for i in session.get_inputs()}',
        "logits = session.run(None, inputs)[0]",
        f"print({shown})",
        "```",
        "",
    ]


def _optimum(auto: str, task: str, hears: bool) -> list[str]:
    opened = f'model = {auto}.from_pretrained(".")'
    head = [
        "Asked with optimum (`pip install optimum-onnx[onnxruntime]`, in its own environment: it pins transformers):",
        "",
        "```python",
        f"from optimum.onnxruntime import {auto}",
        "from transformers import AutoTokenizer, pipeline",
        "",
        opened,
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    ]
    if hears:
        asked = [
            "from transformers import AutoFeatureExtractor",
            'extractor = AutoFeatureExtractor.from_pretrained(".")',
            f'ask = pipeline("{task}", model=model, tokenizer=tokenizer, feature_extractor=extractor)',
            'print(ask("speech.wav"))',
        ]
    elif task:
        text = ASKED.get(task, '"One sentence."') or 'f"One {tokenizer.mask_token}."'
        asked = [f'ask = pipeline("{task}", model=model, tokenizer=tokenizer)', f"print(ask({text}))"]
    else:
        asked = ['inputs = tokenizer(["One end.", "Another end."], padding=True, return_tensors="pt")',
                 "print(model(**{k: v[None] for k, v in inputs.items()}).logits)"]  # fmt: skip
    return [*head, *asked, "```", ""]


def _triton(folder: Path) -> list[str]:
    names = sorted(path.parent.name for path in folder.glob("*/config.pbtxt"))
    loaded = " ".join(f"--load-model={name}" for name in names)
    return [
        "A model repository of Triton Inference Server:",
        "",
        "```sh",
        'docker run --rm -p 8000:8000 -v "$PWD:/models" nvcr.io/nvidia/tritonserver:25.08-py3 \\',
        f"  tritonserver --model-repository=/models --model-control-mode=explicit {loaded}",
        "```",
        "",
        f"Over HTTP: `curl localhost:8000/v2/models/{names[-1]}/infer -d @request.json`, the request as in the KServe",
        'protocol: `{"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 4], "data": [...]}, ...]}`.',
        "",
    ]
