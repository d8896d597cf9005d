"""What people look at after a job: the numbers are right, and the page holds with any labels and pictures."""

import html.parser
import json
import re
import threading
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.image_classifier import report
from algorithms.image_classifier.report import scores, texts, verdicts
from algorithms.image_classifier.report.evaluation import WORST, Split, measure
from tandem.errors import TandemError

HISTORY = [
    {"epoch": 1, "loss": 1.2, "accuracy": 0.6, "val_loss": 0.9, "val_accuracy": 0.7},
    {"epoch": 2, "loss": 0.6, "accuracy": 0.8, "val_loss": 0.5, "val_accuracy": 0.8},
    {"epoch": 3, "loss": 0.5, "accuracy": 0.9, "val_loss": 0.49, "val_accuracy": 0.8},
]
CHARTS = ["calibration.png", "confusion_matrix.png", "learning_curves.png", "mistakes.png"]


def draw_answers(classes, rows, seed=0, sharpness=4.0):
    """Give (truth, probabilities) of a network that is often right."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, rows)
    logits = generator.normal(size=(rows, classes)) + sharpness * np.eye(classes)[truth]
    powers = np.exp(logits)
    return truth, powers / powers.sum(axis=1, keepdims=True)


def make_split(truth, probabilities, name="validation", shape=(8, 8, 3), batch=7, **options):
    """Count rows batch by batch; the pixels of row i are all i."""
    split = Split(name, probabilities.shape[1], **options)
    for first in range(0, len(truth), batch):
        part = slice(first, first + batch)
        rows = np.arange(len(truth))[part] % 256
        pixels = np.broadcast_to(rows[:, None, None, None], (len(rows), *shape)).astype(np.uint8)
        split.add(pixels, truth[part], probabilities[part])
    return split


def write(folder, splits, labels, history=HISTORY, network=None):
    """Write a report; give metrics.json and the page."""
    report.write_evidence(folder, splits, history, network, labels)
    metrics = json.loads((folder / "data/metrics.json").read_text(encoding="utf-8"))
    return metrics, (folder / "data/report.html").read_text(encoding="utf-8")


class Page(html.parser.HTMLParser):
    """Collects the tags and the text of a page, and fails on one that is closed out of turn."""

    VOID = frozenset({"meta", "img", "link", "br", "hr"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def find(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def test_the_numbers_are_those_that_scikit_learn_computes():
    from sklearn import metrics

    truth, probabilities = draw_answers(8, 400, sharpness=1.5)
    split = make_split(truth, probabilities)
    found = scores.score(split, tuple("abcdefgh"))
    said = probabilities.argmax(axis=1)
    assert found["rows"] == 400
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said))
    assert found["loss"] == pytest.approx(metrics.log_loss(truth, probabilities))
    assert found["top_5_accuracy"] == pytest.approx(metrics.top_k_accuracy_score(truth, probabilities, k=5))
    assert found["confusion_matrix"] == metrics.confusion_matrix(truth, said).tolist()
    each = np.transpose(metrics.precision_recall_fscore_support(truth, said))
    for entry, expected in zip(found["classes"], each, strict=True):
        assert [entry[name] for name in ("precision", "recall", "f1", "support")] == pytest.approx(expected)
    for kind in ("macro", "weighted"):
        mean = metrics.precision_recall_fscore_support(truth, said, average=kind)[:3]
        assert [found[kind][name] for name in ("precision", "recall", "f1")] == pytest.approx(mean)


def test_the_calibration_error_is_the_mean_distance_of_probability_and_truth():
    """Ten pictures said with 0.9 of which six are right are off by 0.3."""
    probabilities = np.tile([0.9, 0.1], (10, 1))
    found = scores.score(make_split(np.array([0] * 6 + [1] * 4), probabilities), ("a", "b"))
    assert found["expected_calibration_error"] == pytest.approx(0.3)
    (filled,) = [entry for entry in found["calibration"] if entry["rows"]]
    assert (filled["rows"], filled["probability"], filled["accuracy"]) == (10, pytest.approx(0.9), 0.6)
    assert filled["from"] <= 0.9 < filled["to"]


@given(
    classes=st.integers(2, 7), rows=st.integers(1, 60), batch=st.integers(1, 60), seed=st.integers(0, 9999)
)
@settings(deadline=None, max_examples=40)
def test_the_numbers_do_not_depend_on_how_rows_are_cut_into_batches(classes, rows, batch, seed):
    truth, probabilities = draw_answers(classes, rows, seed, sharpness=1.0)
    labels = tuple("abcdefg"[:classes])
    whole, cut = make_split(truth, probabilities, batch=rows), make_split(truth, probabilities, batch=batch)
    assert [mistake.row for mistake in whole.worst] == [mistake.row for mistake in cut.worst]
    first, second = scores.score(whole, labels), scores.score(cut, labels)
    assert first["confusion_matrix"] == second["confusion_matrix"]
    assert np.sum(first["confusion_matrix"]) == rows
    assert first["loss"] == pytest.approx(second["loss"])
    assert first["expected_calibration_error"] == pytest.approx(
        second["expected_calibration_error"], abs=1e-12
    )
    assert 0 <= first["accuracy_interval"][0] <= first["accuracy"] <= first["accuracy_interval"][1] <= 1


def test_rows_of_weight_0_are_not_counted_but_keep_their_number():
    split = Split("validation", 2, "picture {}".format)
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    split.add(pixels, np.array([0, 0, 0]), np.array([[0.0, 1.0]] * 3), np.array([0.0, 1.0, 0.0]))
    assert (split.rows, [mistake.file for mistake in split.worst]) == (1, ["picture 1"])
    split.add(pixels, np.array([0, 0, 0]), np.array([[0.0, 1.0]] * 3), np.zeros(3))
    assert split.rows == 1


def test_the_worst_are_the_surest_mistakes_with_their_pictures():
    truth, probabilities = draw_answers(3, 200, sharpness=0.5)
    split = make_split(truth, probabilities)
    said = probabilities.argmax(axis=1)
    surer = probabilities[np.arange(200), said] - probabilities[np.arange(200), truth]
    wanted = [row for row in np.argsort(-surer, kind="stable") if said[row] != truth[row]][:WORST]
    assert [mistake.row for mistake in split.worst] == wanted
    for mistake in split.worst:
        assert (mistake.truth, mistake.said) == (truth[mistake.row], said[mistake.row])
        assert (mistake.pixels == mistake.row).all()


def test_a_million_rows_take_no_more_memory_than_some_thousand():
    """A hundred batches of 1000 labels leave counts behind, not their probabilities or their pixels."""
    truth, probabilities = draw_answers(1000, 256, sharpness=9.0)
    pixels = np.zeros((256, 16, 16, 3), np.uint8)
    split = Split("validation", 1000)
    held = []
    tracemalloc.start()
    try:
        for number in range(100):
            split.add(pixels, truth, probabilities)
            if number in {9, 99}:
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert split.rows == 25600
    assert held[1] - held[0] < 100_000


def test_probabilities_that_are_no_numbers_are_refused():
    with pytest.raises(TandemError, match="not all numbers"):
        make_split(np.array([0]), np.array([[np.nan, 1.0]]))


def test_everything_is_written_and_the_page_needs_nothing_beside_it(tmp_path):
    truth, probabilities = draw_answers(4, 120, sharpness=1.0)
    split = make_split(truth, probabilities, file_of="folder/{}.png".format)
    metrics, text = write(tmp_path, [split], list("abcd"))
    assert sorted(path.name for path in (tmp_path / "data").glob("*.png")) == CHARTS
    for name in CHARTS:
        drawn = cv2.imread(str(tmp_path / "data" / name))
        assert drawn.std() > 5, name  # more than an empty sheet
    assert metrics["labels"] == list("abcd")
    assert metrics["history"] == HISTORY
    assert metrics["splits"]["validation"]["rows"] == 120
    page = Page(text)
    assert len(page.find("img")) == 4
    for picture in page.find("img"):
        assert picture["src"].startswith("data:image/png;base64,")
        assert picture["alt"]
    assert not page.find("script")
    assert not page.find("link")
    assert not re.search(r"(?:https?:|url\(|@import)", text)
    for verdict in verdicts.judge(metrics["splits"]["validation"], HISTORY, list("abcd")):
        assert verdict.question in page.text
        assert verdict.answer in page.text
    assert split.worst[0].file in page.text


def test_the_same_answers_make_the_same_files(tmp_path):
    truth, probabilities = draw_answers(4, 60, sharpness=1.0)
    for name in ("first", "second"):
        write(tmp_path / name, [make_split(truth, probabilities)], list("abcd"))
    for path in (tmp_path / "first/data").iterdir():
        assert path.read_bytes() == (tmp_path / "second/data" / path.name).read_bytes(), path.name


def test_names_are_text_and_never_markup(tmp_path):
    labels = ["<script>alert(1)</script>", '"&amp; $x^2$ {{ labels }}', "_under", "\u202eabc"]
    truth, probabilities = draw_answers(4, 60, sharpness=0.1)
    split = make_split(truth, probabilities, file_of=lambda row: f"<img src=x onerror=a()>{row}.png")
    metrics, text = write(tmp_path, [split], labels)
    page = Page(text)
    assert not page.find("script")
    assert not any("onerror" in attributes for attributes in page.find("img"))
    assert "<script>alert(1)</script>" in page.text
    assert labels[1] in page.text
    assert metrics["labels"] == labels


@pytest.mark.parametrize(
    "labels",
    [
        ["кошка", "собака"],
        ["猫", "犬", "鳥"],
        ["قط", "כלב", "ไก่"],
        ["", " ", "\x07", "a" * 200],
        [f"species {number}" for number in range(100)],
        [str(number) for number in range(31)],
    ],
    ids=["cyrillic", "cjk", "from the right", "nothing to draw", "100 labels", "31 labels"],
)
def test_any_labels_can_be_drawn(tmp_path, caplog, labels):
    """Also without a font for them: then charts have their numbers, and the page says which is which."""
    truth, probabilities = draw_answers(len(labels), 40, sharpness=0.5)
    _, text = write(tmp_path, [make_split(truth, probabilities)], labels)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert all("without Grad-CAM" in warning for warning in warnings), warnings  # there is no network here
    page = Page(text)
    for name, label in zip(texts.fit_texts(labels).names, labels, strict=True):
        assert name != f"#{labels.index(label)}" or name in page.text


def test_a_label_that_no_font_can_write_becomes_its_number():
    names = texts.fit_texts(["cat", "кошка", "\U0010fffd", "قط", "x" * 30]).names
    assert names == ("cat", "кошка", "#2", "#3", "x" * 21 + "…")


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1]),  # no mistake
        ([0, 0, 1, 1], [0, 1, 1, 1]),  # one
        ([0, 0, 0, 0], [1, 1, 1, 1]),  # all wrong, a label without a row, another never said
        ([0], [0]),
        ([1], [0]),
    ],
)
@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 1, 1), pytest.param((9, 5, 1), marks=pytest.mark.slow)])
def test_two_labels_few_rows_and_probabilities_of_exactly_0_and_1(tmp_path, truth, said, shape):
    split = make_split(np.array(truth), np.eye(2)[said], shape=shape)
    metrics, text = write(tmp_path, [split], ["no", "yes"])
    found = metrics["splits"]["validation"]
    right = np.mean(np.equal(truth, said))
    assert found["accuracy"] == right
    assert np.isfinite(found["loss"])
    assert "top_5_accuracy" not in found
    wrong = sum(a != b for a, b in zip(truth, said, strict=True))
    assert (tmp_path / "data/mistakes.png").exists() == (wrong > 0)
    assert ("There are none among" in Page(text).text) == (wrong == 0)
    for index, entry in enumerate(found["classes"]):
        assert (entry["recall"] is None) == (index not in truth)


def test_a_thousand_labels_are_listed_and_not_drawn_one_by_one(tmp_path):
    labels = [f"label {number}" for number in range(1000)]
    truth, probabilities = draw_answers(1000, 3000, sharpness=3.0)
    metrics, text = write(tmp_path, [make_split(truth, probabilities, batch=500)], labels)
    assert np.shape(metrics["splits"]["validation"]["confusion_matrix"]) == (1000, 1000)
    assert len(metrics["splits"]["validation"]["confused"]) == scores.PAIRS
    assert len(text) < 2_000_000
    assert "with a higher F1 not shown" in text
    assert max(cv2.imread(str(path)).shape[0] for path in (tmp_path / "data").glob("*.png")) < 2000


def test_a_second_split_stands_beside_the_first(tmp_path):
    truth, probabilities = draw_answers(3, 60, sharpness=1.0)
    splits = [make_split(truth, probabilities, name) for name in ("validation", "test")]
    metrics, text = write(tmp_path, [*splits, Split("empty", 3)], list("abc"))
    assert list(metrics["splits"]) == ["validation", "test"]
    assert {path.name for path in (tmp_path / "data").glob("test_*.png")} == {
        "test_calibration.png",
        "test_confusion_matrix.png",
        "test_mistakes.png",
    }
    page = Page(text)
    assert "Measured on test" in page.text
    assert page.text.count("Did it converge?") == 1


def test_a_job_stopped_in_its_first_epoch_has_a_report_too(tmp_path):
    truth, probabilities = draw_answers(3, 60)
    metrics, text = write(tmp_path, [make_split(truth, probabilities)], list("abc"), history=[])
    assert metrics["history"] == []
    assert "Too early to say" in text
    assert not (tmp_path / "data/learning_curves.png").exists()
    _, text = write(tmp_path, [], list("abc"), history=[{"epoch": 1, "loss": float("nan")}])
    assert "No picture was measured." in text


def test_pictures_of_an_earlier_report_do_not_stay(tmp_path):
    truth, probabilities = draw_answers(3, 60, sharpness=0.5)
    write(tmp_path, [make_split(truth, probabilities)], list("abc"))
    write(tmp_path, [make_split(truth, np.eye(3)[truth])], list("abc"))
    assert not (tmp_path / "data/mistakes.png").exists()


def test_a_report_that_cannot_be_written_is_a_warning_with_its_reason(tmp_path, caplog):
    (tmp_path / "data").write_text("a file where the folder should be")
    truth, probabilities = draw_answers(3, 10)
    report.write_evidence(tmp_path, [make_split(truth, probabilities)], HISTORY, None, list("abc"))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "The model is whole" in warning
    assert "File exists" in warning


def test_what_fails_while_it_is_measured_is_a_warning_too(tmp_path, caplog):
    def measured():
        yield make_split(np.array([0]), np.array([[np.nan, 1.0]]))

    report.write_evidence(tmp_path, measured(), HISTORY, None, ["a", "b"])
    assert "are not all numbers" in caplog.text


def losses(*values):
    return [{"epoch": number, "val_loss": value} for number, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("history", "answer"),
    [
        (losses(0.9, 0.5), "Too early to say"),
        (losses(0.9, 0.5, 0.3, 0.2, 0.1, 0.05), "Still improving"),
        (losses(0.9, 0.3, 0.2, 0.201, 0.2, 0.1995), "Yes"),
        (losses(0.9, 0.3, 0.2, 0.3, 0.4, 0.5), "It went too far"),
        (losses(0.5, 0.0001, 0.0002, 0.0003), "Yes"),
        ([{"epoch": number} for number in range(5)], "Too early to say"),
    ],
)
def test_the_history_says_whether_the_fit_converged(history, answer):
    assert verdicts.judge_convergence(history).answer == answer


@pytest.mark.parametrize(
    ("probability", "right", "answer"),
    [
        (0.9, 90, "Yes"),
        (0.9, 86, "Nearly"),
        (0.9, 82, "Roughly"),
        (0.9, 60, "No: too sure"),
        (0.6, 99, "No: not sure enough"),
    ],
)
def test_probabilities_are_trusted_as_far_as_they_come_true(probability, right, answer):
    truth = np.array([0] * right + [1] * (100 - right))
    split = make_split(truth, np.tile([probability, 1 - probability], (100, 1)))
    assert verdicts.judge_trust(scores.score(split, ("a", "b"))).answer == answer


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.5, "50 %"),
        (0.99999, "over 99.9 %"),
        (1e-9, "under 0.1 %"),
        (0.123, "12.3 %"),
    ],
)
def test_a_share_is_never_rounded_to_all_or_nothing(share, text):
    assert verdicts.percent(share) == text


def test_measuring_runs_the_network_over_a_stream_and_ends_when_stopped():
    import keras
    import tensorflow as tf

    network = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Softmax()])
    pixels = np.zeros((5, 2, 2, 1), np.uint8)
    pixels[:, 1, 0, 0] = 9  # so that all are said to be label 2
    batches = tf.data.Dataset.from_tensor_slices(
        (pixels, np.array([2, 2, 1, 2, 0]), np.array([1, 1, 1, 1, 0], np.float32))
    ).batch(2)
    stop = threading.Event()
    split = Split("test", 4)
    assert measure(network, batches, split, stop)
    assert (split.rows, split.right.tolist(), split.confused) == (4, [0, 0, 3, 0], {(1, 2): 1})
    stop.set()
    assert not measure(network, batches, Split("test", 4), stop)
