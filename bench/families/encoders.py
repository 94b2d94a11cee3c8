"""The encoders and classifiers, small enough that one is exported in seconds; the tokenizer is models.py's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.families.family import Family

VOCABULARY = 512
_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0}
_BERT = _TOKENS | {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 512,
}  # fmt: skip
_ROBERTA = _BERT | {"max_position_embeddings": 514, "type_vocab_size": 1}  # whose positions begin after the padding's
_NARROW = _BERT | {"embedding_size": 32}
_DISTILBERT = {"vocab_size": VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
_LLAMA = _BERT | {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3}
_DEBERTA: dict[str, Any] = _BERT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
_DEBERTA |= {"position_biased_input": False}
_DEBERTA3 = _DEBERTA | {
    "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True, "max_relative_positions": -1,
}  # fmt: skip
_MODERNBERT = _BERT | {
    "local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2,
    "eos_token_id": 3,
}  # fmt: skip
_GEMMA3: dict[str, Any] = _LLAMA | {"head_dim": 16, "sliding_window": 16, "use_bidirectional_attention": True}
_GEMMA3 |= {"layer_types": ["sliding_attention", "full_attention"]}
_LENGTHS = (12, 40, 100)


def _of(architecture: str, sizes: Mapping[str, Any], lengths: tuple[int, ...] = _LENGTHS, **config: Any) -> Family:
    return Family(architecture, {**sizes, **config}, lengths)


ENCODERS: dict[str, Family] = {
    "bert": _of("BertModel", _BERT),
    "bert-cls5": _of("BertForSequenceClassification", _BERT, num_labels=5),
    "bert-reranker1": _of("BertForSequenceClassification", _BERT, num_labels=1),
    "bert-multilabel": _of(
        "BertForSequenceClassification", _BERT, num_labels=6, problem_type="multi_label_classification"
    ),
    "bert-ner": _of("BertForTokenClassification", _BERT, num_labels=5),
    "bert-qa": _of("BertForQuestionAnswering", _BERT),
    "bert-mlm": _of("BertForMaskedLM", _BERT),
    "roberta": _of("RobertaModel", _ROBERTA),
    "roberta-cls": _of("RobertaForSequenceClassification", _ROBERTA, num_labels=3),
    "xlmr": _of("XLMRobertaModel", _ROBERTA),
    "camembert": _of("CamembertModel", _ROBERTA),
    "distilbert": _of("DistilBertModel", _DISTILBERT),
    "distilbert-cls": _of("DistilBertForSequenceClassification", _DISTILBERT, num_labels=3),
    "mpnet": _of("MPNetModel", _BERT, max_position_embeddings=514),
    "deberta": _of("DebertaModel", _DEBERTA),
    "deberta-v3": _of("DebertaV2Model", _DEBERTA3, lengths=(12, 17, 40, 100)),
    "deberta-v3-cls": _of("DebertaV2ForSequenceClassification", _DEBERTA3, num_labels=3),
    "albert": _of("AlbertModel", _NARROW),
    "electra": _of("ElectraModel", _NARROW),
    "electra-cls": _of("ElectraForSequenceClassification", _NARROW, num_labels=4),
    "modernbert": _of("ModernBertModel", _MODERNBERT, lengths=(7, 12, 40, 100)),
    "modernbert-cls": _of("ModernBertForSequenceClassification", _MODERNBERT, num_labels=3, classifier_pooling="mean"),
    "xlnet": _of("XLNetModel", _TOKENS, d_model=64, n_layer=2, n_head=4, d_inner=128),
    "roformer": _of("RoFormerModel", _BERT, embedding_size=64),
    "convbert": _of("ConvBertModel", _NARROW),
    "mobilebert": _of("MobileBertModel", _NARROW, intra_bottleneck_size=32, true_hidden_size=32),
    "longformer": _of("LongformerModel", _BERT, max_position_embeddings=514, attention_window=16),
    "bigbird": _of("BigBirdModel", _BERT, attention_type="original_full"),
    "nomic": _of("NomicBertModel", _BERT),
    "eurobert": _of("EuroBertModel", _BERT, num_key_value_heads=4),
    "jina3": _of("JinaEmbeddingsV3Model", _BERT),
    "t5enc": _of(
        "T5EncoderModel", _TOKENS, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, is_encoder_decoder=False,
        use_cache=False, lengths=(12, 40, 100, 200),
    ),
    "mistral-embed": _of("MistralModel", _LLAMA, sliding_window=16),
    "qwen2-embed": _of("Qwen2Model", _LLAMA),
    "gemma3-embed": _of("Gemma3TextModel", _GEMMA3),
    "llama-cls": _of("LlamaForSequenceClassification", _LLAMA, num_labels=3),
    "llama-cls-nopad": _of("LlamaForSequenceClassification", _LLAMA, pad_token_id=None, num_labels=3),
    "llama-reward1": _of("LlamaForSequenceClassification", _LLAMA, num_labels=1),
    "gpt2-cls": _of(
        "GPT2ForSequenceClassification", _TOKENS, n_embd=64, n_layer=2, n_head=4, n_positions=512, num_labels=3
    ),
}  # fmt: skip
