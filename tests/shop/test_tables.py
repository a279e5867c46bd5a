import gzip
import io
import lzma
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.errors import InputError
from hawker.shop.tables import (
    Quarantine,
    RawTable,
    find_table,
    join,
    open_compressed,
    read_csv,
    read_table,
    write_table,
)


def blocks(text, size=1 << 16):
    return list(read_csv(io.BytesIO(text.encode()), Path("x.csv"), block_bytes=size))


def test_cells_are_text_and_empty_ones_missing():
    (block,) = blocks('\ufeffa,b\n007,\n"x, ""y""\nz",1e5\n\n')
    assert block.data.to_pydict() == {"a": ["007", 'x, "y"\nz'], "b": [None, "1e5"]}
    assert block.rows.tolist() == [0, 1]
    assert block.is_csv


def test_torn_rows_keep_the_numbers_of_the_others():
    for size in (12, 1 << 16):
        table = join(blocks("a,b\n1,2\n3\n4,5\n6\n7,8\n9,10\n11,12,13\n14,15\n", size))
        assert table.data["a"].to_pylist() == ["1", "4", "7", "9", "14"]
        assert table.rows.tolist() == [0, 2, 4, 5, 7]
        assert [(row, text) for row, text, _ in table.torn] == [(1, "3"), (3, "6"), (6, "11,12,13")]
        assert table.torn[2][2] == "3 cells, expected 2"


@given(st.lists(st.integers(1, 3), max_size=40), st.integers(16, 80))
def test_rows_have_their_numbers_in_any_block(widths, size):
    lines = [",".join([str(row)] * width) for row, width in enumerate(widths)]
    found = blocks("\n".join(["a,b", *lines]), size)
    rows = [row for block in found for row in block.rows.tolist()]
    torn = [row for block in found for row, _, _ in block.torn]
    assert rows == [row for row, width in enumerate(widths) if width == 2]
    assert torn == [row for row, width in enumerate(widths) if width != 2]
    assert [cell for block in found for cell in block.data["a"].to_pylist()] == [str(row) for row in rows]


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_no_header(text):
    with pytest.raises(InputError, match="no header"):
        blocks(text)


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(InputError, match=r"x\.csv: the file cannot be read"):
        list(read_csv(io.BytesIO(b"a\n\xff\xfe\n"), Path("x.csv"), block_bytes=99))


def test_compressed_files(tmp_path):
    for name, data in (
        ("a.xz", lzma.compress(b"tea")),
        ("a.gz", gzip.compress(b"tea")),
        ("a.zst", pa.compress(b"tea", "zstd", asbytes=True)),
        ("a", b"tea"),
    ):
        (tmp_path / name).write_bytes(data)
        with open_compressed(tmp_path / name) as file:
            assert file.read() == b"tea"
        if "." in name:
            (tmp_path / name).write_bytes(data[:-3])
            with pytest.raises(InputError, match="cannot be read"), open_compressed(tmp_path / name) as file:
                file.read()
    with pytest.raises(InputError, match="no such file"), open_compressed(tmp_path / "b.xz"):
        pass


def test_folder_names_are_no_columns(tmp_path):
    folder = tmp_path / "day=7"
    folder.mkdir()
    pd.DataFrame({"a": [1]}).to_parquet(folder / "items.parquet")
    assert read_table(folder / "items.parquet").table().column_names == ["a"]


def test_one_table_of_a_name(tmp_path):
    assert find_table(tmp_path, "items") is None
    (tmp_path / "items.csv").write_text("item_id\n1\n")
    assert find_table(tmp_path, "items") == tmp_path / "items.csv"
    (tmp_path / "items.parquet").write_text("")
    with pytest.raises(InputError, match="the table items is here twice"):
        find_table(tmp_path, "items")


def test_two_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="two columns have one name; got 'a'"):
        read_table(tmp_path / "x.parquet")


def test_written_table_is_read_back(tmp_path, impressions):
    write_table(impressions, tmp_path / "x.parquet")
    table = read_table(tmp_path / "x.parquet")
    assert table.names == list(impressions.columns)
    assert table.rows.size == table.table().num_rows == 60
    assert table.column("affinity.10").to_pylist() == impressions["affinity.10"].tolist()
    assert table.value("timestamp", 0) == "2026-03-01 10:00:00+00:00"


def test_damaged_column_is_one_line(tmp_path):
    path = tmp_path / "x.parquet"
    write_table(pd.DataFrame({"a": np.random.default_rng(0).normal(size=5_000), "affinity": 1, "affinity.1": 2}), path)
    assert read_table(path).column("affinity").to_pylist()[0] == 1
    whole = bytearray(path.read_bytes())
    whole[4:4_000] = bytes(3_996)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"x\.parquet: the file cannot be read"):
        read_table(path).column("a")


def test_quarantine_keeps_rows_as_they_stood(tmp_path):
    (block,) = blocks('a,b\n1,"x, y"\n3\n4,\n')
    typed = RawTable(Path("t.parquet"), pa.table({"n": [1.5, None]}), np.array([10, 11]), (), False)
    with Quarantine(tmp_path) as quarantine:
        quarantine.add(block, {1: "b: missing value", 0: "a: bad value"})
        quarantine.add(typed, {1: "n: missing value"})
    assert quarantine.rows == 4
    assert pd.read_parquet(quarantine.path).to_dict("list") == {
        "file": ["x.csv", "x.csv", "x.csv", "t.parquet"],
        "row": [1, 0, 2, 11],
        "reason": ["1 cells, expected 2", "a: bad value", "b: missing value", "n: missing value"],
        "raw": ["3", '1,"x, y"', "4,", '{"n": null}'],
    }


def test_quarantine_without_rows_is_no_file(tmp_path):
    with Quarantine(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
