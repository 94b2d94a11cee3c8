"""The texts that are measured and calibrated on: they are never the same, and quote no passage of each other."""

import pytest

from exporter.checkpoint.recipes import RECIPES
from exporter.errors import JobError
from exporter.pipeline.texts import (
    TOPICS,
    calibration_text,
    evaluation_text,
    first_half,
    shared_passage,
    standard_library_topics,
)

pytestmark = pytest.mark.quick


def test_the_text_is_never_the_evaluations(tmp_path):
    topics = standard_library_topics()
    assert calibration_text(None, None, topics, 4096) == (TOPICS, topics, 4096)  # after what is measured
    assert calibration_text(None, None, "another text", 4096) == (TOPICS, topics, 0)
    file = tmp_path / "text.txt"
    file.write_text("the evaluation's\n")
    assert calibration_text(file, None, "another text", 4096)[0] == "text.txt"
    with pytest.raises(JobError, match="give another --calib-text"):
        calibration_text(file, None, "the evaluation's", 4096)


def test_pairs_of_sentences_are_of_a_part_of_the_topics_that_calibration_does_not_read():
    topics = standard_library_topics()
    measured = first_half(topics)
    name, rest, skip = calibration_text(None, None, measured, len(measured))
    assert (name, measured + rest, skip) == (TOPICS, topics, 0)
    assert abs(len(measured) - len(rest)) < len(topics) / 10


WORDS = [f"word{number}" for number in range(400)]


def text_of(words):
    return "\n".join(" ".join(words[begin : begin + 7]) for begin in range(0, len(words), 7))


@pytest.mark.parametrize("begin", [0, 13, 150, 350])
@pytest.mark.parametrize("at", [0, 1, 24, 25, 26, 150])
def test_fifty_words_in_a_row_that_both_texts_hold_are_found_wherever_they_are(begin, at):
    others = [f"other{number}" for number in range(200)]
    shared = WORDS[begin : begin + 50]
    passage = shared_passage(WORDS, others[:at] + shared + others[at:])
    assert passage == f"'{' '.join(shared[:12])} …' (50 words)"
    broken = [*shared[:30], "otherwise", *shared[31:]]
    assert shared_passage(WORDS, others[:at] + broken + others[at:]) is None
    assert shared_passage(WORDS, others[:at] + shared[1:] + others[at:]) is None


def test_a_text_that_contains_the_other_or_quotes_it_is_refused(tmp_path):
    file = tmp_path / "text.txt"
    others = [f"other{number}" for number in range(500)]
    for words in (WORDS, WORDS[:100], WORDS[5:12], others + WORDS[100:170] + others, WORDS + others):
        file.write_text(text_of(words))
        with pytest.raises(JobError, match=r"The first passage that both hold: 'word\d+ word\d+ "):
            calibration_text(file, None, "  ".join(WORDS), 4096)
    file.write_text(text_of(WORDS[210:]))
    assert calibration_text(file, None, " ".join(WORDS), 200)[0] == "text.txt"  # beyond what is measured
    with pytest.raises(JobError, match="of the Python standard library shares text"):
        calibration_text(None, None, "A heading\n" + standard_library_topics(), 4096)


def test_a_passage_is_found_where_a_script_puts_no_spaces_between_words(tmp_path):
    file = tmp_path / "text.txt"
    measured = "".join(map(chr, range(0x4E00, 0x4F00)))
    file.write_text("".join(map(chr, range(0x5000, 0x5100))) + measured[20:80])
    with pytest.raises(JobError, match="60 words"):
        calibration_text(file, None, measured, 4096)


def test_the_tiny_models_two_texts_share_no_passage():
    recipe = RECIPES["tiny"]
    name, evaluated = evaluation_text(None, recipe)
    assert name == "eval.txt"
    assert calibration_text(None, recipe, evaluated, 4096)[0] == "calib.txt"
