"""What is said and drawn when a run ends."""

from reformer.training import report


def test_the_table_shows_accuracy_where_it_is_known():
    table = report.table({"this model": 0.25, "label counts": 1.5, "another": 2.0}, "image", {"this model": 0.984})
    assert table.splitlines() == [
        "  this model    0.250 bits/image  accuracy 98.40%",
        "  label counts  1.500 bits/image",
        "  another       2.000 bits/image",
    ]


def test_the_table_shows_bits_alone_where_they_are_what_counts():
    assert report.table({"this model": 2.08}, "byte") == "  this model  2.080 bits/byte"
