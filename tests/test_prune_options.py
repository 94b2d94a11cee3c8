"""How --prune is read."""

from pathlib import Path

import pytest

from exporter.errors import JobError
from exporter.stages.prune.options import METHODS, parse

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "written", "share", "two_of_four", "layers", "file"),
    [
        ("magnitude", "magnitude:0.2", 0.2, False, None, None),
        ("magnitude-layer:.50", "magnitude-layer:0.5", 0.5, False, None, None),
        ("magnitude:2:4", "magnitude:2:4", None, True, None, None),
        ("wanda:2:4", "wanda:2:4", None, True, None, None),
        ("wanda", "wanda:0.5", 0.5, False, None, None),
        ("sparsegpt:0.7", "sparsegpt:0.7", 0.7, False, None, None),
        ("width", "width:0.2", 0.2, False, None, None),
        ("heads:0.5", "heads:0.5", 0.5, False, None, None),
        ("depth:03", "depth:3", None, False, 3, None),
        ("vocabulary:C:a.txt", "vocabulary:C:a.txt", None, False, None, Path("C:a.txt")),
    ],
)
def test_what_is_read(text, written, share, two_of_four, layers, file):
    one = parse(text)
    assert (str(one), one.share, one.two_of_four, one.layers, one.file) == (written, share, two_of_four, layers, file)
    assert parse(str(one)) == one


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("wandas:0.5", "--prune: unknown method 'wandas'; did you mean wanda?; for example: --prune sparsegpt:0.5"),
        (
            "",
            "--prune: unknown method ''; there are: depth, heads, magnitude, magnitude-layer, sparsegpt, vocabulary, ",
        ),
        ("wanda:", "--prune wanda: '' is not a share between 0 and 1 or 2:4; for example: --prune wanda:2:4"),
        ("wanda:1", "--prune wanda: '1' is not a share between 0 and 1 or 2:4; for example: --prune wanda:2:4"),
        ("magnitude:20%", "--prune magnitude: '20%' is not a share between 0 and 1 or 2:4; for example: "),
        ("magnitude:nan", "'nan' is not a share"),
        ("sparsegpt:1:4", "'1:4' is not a share between 0 and 1 or 2:4"),
        ("width:2:4", "'2:4' is not a share between 0 and 1; for example: --prune width:0.2"),
        ("depth:0", "--prune depth: '0' is not a number of layers, 1 or more; for example: --prune depth:3"),
        ("depth:0.5", "'0.5' is not a number of layers, 1 or more"),
        ("vocabulary", "--prune vocabulary: it needs a text file, whose tokens are kept; for example: --prune vocab"),
        ("vocabulary:", "'' is not a text file, whose tokens are kept"),
    ],
)
def test_what_cannot_be_read(text, line):
    with pytest.raises(JobError) as error:
        parse(text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_a_default_or_an_example_that_is_read(name):
    how = METHODS[name]
    assert parse(f"{name}:{how.example}").method == name
    assert how.default is None or parse(name).amount == how.default
