from __future__ import annotations

import pytest

from tenantferry.lsn import format_lsn, parse_lsn


@pytest.mark.parametrize("text", ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"], ids=str)
def test_format_lsn_is_the_inverse_of_parse_lsn(text: str) -> None:
    assert format_lsn(parse_lsn(text)) == text


@pytest.mark.parametrize("text", ["", "1", "1/", "123456789/0", "0/0 ", "g/0"], ids=repr)
def test_parse_lsn_refuses_other_text(text: str) -> None:
    with pytest.raises(ValueError, match="invalid pg_lsn"):
        parse_lsn(text)
