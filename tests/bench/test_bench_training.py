"""The training benchmark: its images, ratios and tables."""

from bench.figures import compare
from bench.training import find_images, render

from tandem.images import codec


def test_images_are_the_same_each_time_and_written_once(tmp_path):
    """They are whole JPEGs of the requested size, equally many of both labels."""
    first, second = (find_images(tmp_path / name, 48, 6) for name in "ab")
    names = [path.relative_to(first).as_posix() for path in sorted(first.rglob("*.jpg"))]
    assert [name.split("/")[0] for name in names] == ["china"] * 3 + ["flower"] * 3
    assert {codec.read(first / name).shape for name in names} == {(48, 48, 3)}
    bodies = [(first / name).read_bytes() for name in names]
    assert bodies == [(second / name).read_bytes() for name in names]
    assert len(set(bodies)) == 6
    (first / names[0]).write_bytes(b"still there")
    assert (find_images(tmp_path / "a", 48, 6) / names[0]).read_bytes() == b"still there"


def make_records(**rates):
    return [
        {"workload": "32", "round": number, "way": way, "rate": rate, "cpu": 100 / rate}
        for way, found in rates.items()
        for number, rate in enumerate(found)
    ]


def test_rates_are_divided_round_by_round():
    """A machine that is slow in one round is slow for both."""
    limit, keras, ours = (make_records(way=rates) for rates in ([100, 10], [50, 5], [90, 9]))
    assert compare(ours, limit).median == 0.9
    assert compare(ours, keras).least == 1.8


def test_the_tables_have_a_row_per_way():
    records = make_records(limit=[100, 100], keras=[50, 50], ours=[90, 98])
    rows = [" ".join(line.split()) for line in render(records).splitlines()]
    assert (
        "| ours | 94 (90 to 98) | 0.94 (0.90 to 0.98) | 1.88 (1.80 to 1.96) | 1.07 | 0.94 (0.90 to 0.98) |"
        in rows
    )
