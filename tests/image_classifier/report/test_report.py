"""The report: its scores are correct, and the page works with any labels and images."""

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
from algorithms.image_classifier.report import fonts, scores, verdicts
from algorithms.image_classifier.report.evaluation import MAX_MISTAKES, Evaluation, measure
from tandem.errors import TandemError

HISTORY = [
    {"epoch": 1, "loss": 1.2, "accuracy": 0.6, "val_loss": 0.9, "val_accuracy": 0.7},
    {"epoch": 2, "loss": 0.6, "accuracy": 0.8, "val_loss": 0.5, "val_accuracy": 0.8},
    {"epoch": 3, "loss": 0.5, "accuracy": 0.9, "val_loss": 0.49, "val_accuracy": 0.8},
]
CHARTS = ["calibration.png", "confusion_matrix.png", "learning_curves.png", "mistakes.png"]


def draw_answers(classes, rows, seed=0, sharpness=4.0):
    """Return (truth, probabilities) of a network that is often correct."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, rows)
    logits = generator.normal(size=(rows, classes)) + sharpness * np.eye(classes)[truth]
    powers = np.exp(logits)
    return truth, powers / powers.sum(axis=1, keepdims=True)


def evaluate(truth, probabilities, name="validation", shape=(8, 8, 3), batch=7, **options):
    """Return the evaluation of rows that are added in batches; all pixels of row i are i."""
    evaluation = Evaluation(name, probabilities.shape[1], **options)
    for first in range(0, len(truth), batch):
        part = slice(first, first + batch)
        rows = np.arange(len(truth))[part] % 256
        pixels = np.broadcast_to(rows[:, None, None, None], (len(rows), *shape)).astype(np.uint8)
        evaluation.add(pixels, truth[part], probabilities[part])
    return evaluation


def write(folder, evaluations, labels, history=HISTORY, network=None):
    """Write a report and return metrics.json and the page."""
    report.write_report(folder, evaluations, history, network, labels)
    metrics = json.loads((folder / "data/metrics.json").read_text(encoding="utf-8"))
    return metrics, (folder / "data/report.html").read_text(encoding="utf-8")


class Page(html.parser.HTMLParser):
    """Collects the tags and the text of a page, and fails on tags that are closed in the wrong order."""

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


def test_the_scores_equal_those_of_scikit_learn():
    from sklearn import metrics

    truth, probabilities = draw_answers(8, 400, sharpness=1.5)
    evaluation = evaluate(truth, probabilities)
    found = scores.score(evaluation, tuple("abcdefgh"))
    predicted = probabilities.argmax(axis=1)
    assert found["rows"] == 400
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert found["loss"] == pytest.approx(metrics.log_loss(truth, probabilities))
    assert found["top_5_accuracy"] == pytest.approx(metrics.top_k_accuracy_score(truth, probabilities, k=5))
    assert found["confusion_matrix"] == metrics.confusion_matrix(truth, predicted).tolist()
    each = np.transpose(metrics.precision_recall_fscore_support(truth, predicted))
    for entry, expected in zip(found["classes"], each, strict=True):
        assert [entry[name] for name in ("precision", "recall", "f1", "support")] == pytest.approx(expected)
    for kind in ("macro", "weighted"):
        mean = metrics.precision_recall_fscore_support(truth, predicted, average=kind)[:3]
        assert [found[kind][name] for name in ("precision", "recall", "f1")] == pytest.approx(mean)


def test_the_calibration_error_is_the_mean_distance_of_probability_and_accuracy():
    """Ten predictions with a probability of 0.9, of which six are correct, are off by 0.3."""
    probabilities = np.tile([0.9, 0.1], (10, 1))
    found = scores.score(evaluate(np.array([0] * 6 + [1] * 4), probabilities), ("a", "b"))
    assert found["expected_calibration_error"] == pytest.approx(0.3)
    (filled,) = [entry for entry in found["calibration"] if entry["rows"]]
    assert (filled["rows"], filled["probability"], filled["accuracy"]) == (10, pytest.approx(0.9), 0.6)
    assert filled["from"] <= 0.9 < filled["to"]


@given(
    classes=st.integers(2, 7), rows=st.integers(1, 60), batch=st.integers(1, 60), seed=st.integers(0, 9999)
)
@settings(deadline=None, max_examples=40)
def test_the_scores_do_not_depend_on_the_batches(classes, rows, batch, seed):
    truth, probabilities = draw_answers(classes, rows, seed, sharpness=1.0)
    labels = tuple("abcdefg"[:classes])
    whole, cut = evaluate(truth, probabilities, batch=rows), evaluate(truth, probabilities, batch=batch)
    assert [mistake.row for mistake in whole.worst] == [mistake.row for mistake in cut.worst]
    first, second = scores.score(whole, labels), scores.score(cut, labels)
    assert first["confusion_matrix"] == second["confusion_matrix"]
    assert np.sum(first["confusion_matrix"]) == rows
    assert first["loss"] == pytest.approx(second["loss"])
    assert first["expected_calibration_error"] == pytest.approx(
        second["expected_calibration_error"], abs=1e-12
    )
    assert 0 <= first["accuracy_interval"][0] <= first["accuracy"] <= first["accuracy_interval"][1] <= 1


def test_rows_of_weight_0_do_not_count_but_keep_their_number():
    evaluation = Evaluation("validation", 2, "image {}".format)
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    evaluation.add(pixels, np.array([0, 0, 0]), np.array([[0.0, 1.0]] * 3), np.array([0.0, 1.0, 0.0]))
    assert (evaluation.rows, [mistake.file for mistake in evaluation.worst]) == (1, ["image 1"])
    evaluation.add(pixels, np.array([0, 0, 0]), np.array([[0.0, 1.0]] * 3), np.zeros(3))
    assert evaluation.rows == 1


def test_the_worst_mistakes_have_the_largest_difference_in_probability():
    truth, probabilities = draw_answers(3, 200, sharpness=0.5)
    evaluation = evaluate(truth, probabilities)
    predicted = probabilities.argmax(axis=1)
    difference = probabilities[np.arange(200), predicted] - probabilities[np.arange(200), truth]
    wanted = [row for row in np.argsort(-difference, kind="stable") if predicted[row] != truth[row]][
        :MAX_MISTAKES
    ]
    assert [mistake.row for mistake in evaluation.worst] == wanted
    for mistake in evaluation.worst:
        assert (mistake.truth, mistake.predicted) == (truth[mistake.row], predicted[mistake.row])
        assert (mistake.pixels == mistake.row).all()


def test_the_memory_of_an_evaluation_does_not_depend_on_the_number_of_rows():
    """Only counts of the batches are kept, neither probabilities nor pixels."""
    truth, probabilities = draw_answers(1000, 256, sharpness=9.0)
    pixels = np.zeros((256, 16, 16, 3), np.uint8)
    evaluation = Evaluation("validation", 1000)
    used = []
    tracemalloc.start()
    try:
        for number in range(100):
            evaluation.add(pixels, truth, probabilities)
            if number in {9, 99}:
                used.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert evaluation.rows == 25600
    assert used[1] - used[0] < 100_000


def test_probabilities_that_are_not_finite_are_rejected():
    with pytest.raises(TandemError, match="not all finite"):
        evaluate(np.array([0]), np.array([[np.nan, 1.0]]))


def test_all_files_are_written_and_the_page_is_self_contained(tmp_path):
    truth, probabilities = draw_answers(4, 120, sharpness=1.0)
    evaluation = evaluate(truth, probabilities, file_of="folder/{}.png".format)
    metrics, text = write(tmp_path, [evaluation], list("abcd"))
    assert sorted(path.name for path in (tmp_path / "data").glob("*.png")) == CHARTS
    for name in CHARTS:
        drawn = cv2.imread(str(tmp_path / "data" / name))
        assert drawn.std() > 5, name  # more than an empty chart
    assert metrics["labels"] == list("abcd")
    assert metrics["history"] == HISTORY
    assert metrics["splits"]["validation"]["rows"] == 120
    page = Page(text)
    assert len(page.find("img")) == 4
    for image in page.find("img"):
        assert image["src"].startswith("data:image/png;base64,")
        assert image["alt"]
    assert not page.find("script")
    assert not page.find("link")
    assert not re.search(r"(?:https?:|url\(|@import)", text)
    for verdict in verdicts.judge(metrics["splits"]["validation"], HISTORY, list("abcd")):
        assert verdict.question in page.text
        assert verdict.answer in page.text
    assert evaluation.worst[0].file in page.text


def test_equal_evaluations_result_in_equal_files(tmp_path):
    truth, probabilities = draw_answers(4, 60, sharpness=1.0)
    for name in ("first", "second"):
        write(tmp_path / name, [evaluate(truth, probabilities)], list("abcd"))
    for path in (tmp_path / "first/data").iterdir():
        assert path.read_bytes() == (tmp_path / "second/data" / path.name).read_bytes(), path.name


def test_names_are_escaped_in_the_page(tmp_path):
    labels = ["<script>alert(1)</script>", '"&amp; $x^2$ {{ labels }}', "_under", "\u202eabc"]
    truth, probabilities = draw_answers(4, 60, sharpness=0.1)
    evaluation = evaluate(truth, probabilities, file_of=lambda row: f"<img src=x onerror=a()>{row}.png")
    metrics, text = write(tmp_path, [evaluation], labels)
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
    ids=["cyrillic", "cjk", "right to left", "invisible", "100 labels", "31 labels"],
)
def test_any_labels_can_be_drawn(tmp_path, caplog, labels):
    """Without a font for a label the charts show its number, and the page explains the numbers."""
    truth, probabilities = draw_answers(len(labels), 40, sharpness=0.5)
    _, text = write(tmp_path, [evaluate(truth, probabilities)], labels)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert all("without Grad-CAM" in warning for warning in warnings), warnings  # there is no network here
    page = Page(text)
    for name, label in zip(fonts.fit_labels(labels).names, labels, strict=True):
        assert name != f"#{labels.index(label)}" or name in page.text


def test_a_label_that_no_font_can_display_becomes_its_number():
    names = fonts.fit_labels(["cat", "кошка", "\U0010fffd", "قط", "x" * 30]).names
    assert names == ("cat", "кошка", "#2", "#3", "x" * 21 + "…")


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1]),  # no mistake
        ([0, 0, 1, 1], [0, 1, 1, 1]),  # one
        ([0, 0, 0, 0], [1, 1, 1, 1]),  # all wrong, a label without a row, another never predicted
        ([0], [0]),
        ([1], [0]),
    ],
)
@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 1, 1), pytest.param((9, 5, 1), marks=pytest.mark.slow)])
def test_two_labels_few_rows_and_probabilities_of_exactly_0_and_1(tmp_path, truth, predicted, shape):
    evaluation = evaluate(np.array(truth), np.eye(2)[predicted], shape=shape)
    metrics, text = write(tmp_path, [evaluation], ["no", "yes"])
    found = metrics["splits"]["validation"]
    accuracy = np.mean(np.equal(truth, predicted))
    assert found["accuracy"] == accuracy
    assert np.isfinite(found["loss"])
    assert "top_5_accuracy" not in found
    wrong = sum(a != b for a, b in zip(truth, predicted, strict=True))
    assert (tmp_path / "data/mistakes.png").exists() == (wrong > 0)
    assert ("There are no mistakes in" in Page(text).text) == (wrong == 0)
    for index, entry in enumerate(found["classes"]):
        assert (entry["recall"] is None) == (index not in truth)


def test_a_thousand_labels_are_listed_and_not_drawn_one_by_one(tmp_path):
    labels = [f"label {number}" for number in range(1000)]
    truth, probabilities = draw_answers(1000, 3000, sharpness=3.0)
    metrics, text = write(tmp_path, [evaluate(truth, probabilities, batch=500)], labels)
    assert np.shape(metrics["splits"]["validation"]["confusion_matrix"]) == (1000, 1000)
    assert len(metrics["splits"]["validation"]["confused"]) == scores.MAX_PAIRS
    assert len(text) < 2_000_000
    assert "with a higher F1 not shown" in text
    assert max(cv2.imread(str(path)).shape[0] for path in (tmp_path / "data").glob("*.png")) < 2000


def test_a_second_evaluation_follows_the_first(tmp_path):
    truth, probabilities = draw_answers(3, 60, sharpness=1.0)
    evaluations = [evaluate(truth, probabilities, name) for name in ("validation", "test")]
    metrics, text = write(tmp_path, [*evaluations, Evaluation("empty", 3)], list("abc"))
    assert list(metrics["splits"]) == ["validation", "test"]
    assert {path.name for path in (tmp_path / "data").glob("test_*.png")} == {
        "test_calibration.png",
        "test_confusion_matrix.png",
        "test_mistakes.png",
    }
    page = Page(text)
    assert "Results on test" in page.text
    assert page.text.count("Did it converge?") == 1


def test_a_job_that_is_stopped_in_its_first_epoch_has_a_report(tmp_path):
    truth, probabilities = draw_answers(3, 60)
    metrics, text = write(tmp_path, [evaluate(truth, probabilities)], list("abc"), history=[])
    assert metrics["history"] == []
    assert "Too early to say" in text
    assert not (tmp_path / "data/learning_curves.png").exists()
    _, text = write(tmp_path, [], list("abc"), history=[{"epoch": 1, "loss": float("nan")}])
    assert "No images were evaluated." in text


def test_charts_of_an_earlier_report_are_removed(tmp_path):
    truth, probabilities = draw_answers(3, 60, sharpness=0.5)
    write(tmp_path, [evaluate(truth, probabilities)], list("abc"))
    write(tmp_path, [evaluate(truth, np.eye(3)[truth])], list("abc"))
    assert not (tmp_path / "data/mistakes.png").exists()


def test_a_report_that_cannot_be_written_is_a_warning_with_its_reason(tmp_path, caplog):
    (tmp_path / "data").write_text("a file where the folder should be")
    truth, probabilities = draw_answers(3, 10)
    report.write_report(tmp_path, [evaluate(truth, probabilities)], HISTORY, None, list("abc"))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "The model is complete" in warning
    assert "File exists" in warning


def test_a_failing_evaluation_is_a_warning(tmp_path, caplog):
    def fail():
        yield evaluate(np.array([0]), np.array([[np.nan, 1.0]]))

    report.write_report(tmp_path, fail(), HISTORY, None, ["a", "b"])
    assert "are not all finite" in caplog.text


def losses(*values):
    return [{"epoch": number, "val_loss": value} for number, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("history", "answer"),
    [
        (losses(0.9, 0.5), "Too early to say"),
        (losses(0.9, 0.5, 0.3, 0.2, 0.1, 0.05), "Still improving"),
        (losses(0.9, 0.3, 0.2, 0.201, 0.2, 0.1995), "Yes"),
        (losses(0.9, 0.3, 0.2, 0.3, 0.4, 0.5), "No: overfitting"),
        (losses(0.5, 0.0001, 0.0002, 0.0003), "Yes"),
        ([{"epoch": number} for number in range(5)], "Too early to say"),
    ],
)
def test_the_verdict_on_convergence_depends_on_the_history(history, answer):
    assert verdicts.judge_convergence(history).answer == answer


@pytest.mark.parametrize(
    ("probability", "correct", "answer"),
    [
        (0.9, 90, "Yes"),
        (0.9, 86, "Nearly"),
        (0.9, 82, "Roughly"),
        (0.9, 60, "No: overconfident"),
        (0.6, 99, "No: underconfident"),
    ],
)
def test_the_verdict_on_trust_depends_on_the_calibration(probability, correct, answer):
    truth = np.array([0] * correct + [1] * (100 - correct))
    evaluation = evaluate(truth, np.tile([probability, 1 - probability], (100, 1)))
    assert verdicts.judge_trust(scores.score(evaluation, ("a", "b"))).answer == answer


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
def test_a_share_is_never_rounded_to_0_or_100_percent(share, text):
    assert verdicts.percent(share) == text


def test_measure_evaluates_a_dataset_and_ends_when_stopped():
    import keras
    import tensorflow as tf

    network = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Softmax()])
    pixels = np.zeros((5, 2, 2, 1), np.uint8)
    pixels[:, 1, 0, 0] = 9  # so that label 2 is predicted for all
    batches = tf.data.Dataset.from_tensor_slices(
        (pixels, np.array([2, 2, 1, 2, 0]), np.array([1, 1, 1, 1, 0], np.float32))
    ).batch(2)
    stop = threading.Event()
    evaluation = Evaluation("test", 4)
    assert measure(network, batches, evaluation, stop)
    assert (evaluation.rows, evaluation.correct.tolist(), evaluation.confused) == (
        4,
        [0, 0, 3, 0],
        {(1, 2): 1},
    )
    stop.set()
    assert not measure(network, batches, Evaluation("test", 4), stop)
