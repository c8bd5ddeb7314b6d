"""False alarms on the page: images that were accepted, with their files, and the classes that are taken for each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from episodes.data.image_dataset import ImageSet
from episodes.features.bank import FeatureBank
from episodes.reporting.collectors import Confusions, FalseAlarm, ReportCollector
from episodes.reporting.html_page import Page, escape
from episodes.reporting.html_tables import words_table
from episodes.reporting.plots import shown_heads
from episodes.reporting.report import Report
from fewshot_nam.io.atomic import replacing
from fewshot_nam.vision.image_transform import opaque

_SIDE = 112  # of an image on the page, in pixels
_ROWS = 10  # of a table of confusions


def add_alarms(
    page: Page,
    report: Report,
    collected: ReportCollector,
    banks: Mapping[str, FeatureBank],
    images: Mapping[str, ImageSet],
) -> None:
    """Add the images of the most confident false alarms of the report's main head, or say why there are none."""
    head = report.main_head
    found = collected.heads[head]
    alarms, title = found.false_alarms(), f"Most confident false alarms of {head}"
    if not found.queries.episodes:
        page.leave_out(title, "the episodes have no unknown queries")
    elif "novel" not in images:
        page.leave_out(title, "the episodes come from a file of features, which holds no images")
    elif not alarms:
        page.leave_out(title, "no unknown query was accepted in any episode")
    else:
        page.add(
            f'<section id="alarms"><h2>{escape(title)}</h2>',
            f"<p>Unknown queries that {escape(head)} accepted with the largest margin over their episode's threshold "
            "(open_fpr@95tpr), every image once, all episodes. Left: the query. Right: an image of the class it was accepted as, "
            'the support image or one of a base class.</p><ol class="alarms">',
        )
        opened = {role: _Opened(banks[role], images.get(role)) for role in ("novel", "base") if role in banks}
        for number, alarm in enumerate(alarms, start=1):
            page.add(f"<li>{_alarm(page, f'false_alarm_{number:02}', alarm, opened)}</li>")
        page.add("</ol></section>")


def add_confusions(page: Page, report: Report, collected: ReportCollector, banks: Mapping[str, FeatureBank]) -> None:
    """Add which unknown classes raise false alarms, and which known classes are given another class."""
    head, *others = shown_heads(report)
    kinds = (
        ("accepted", "unknown class", "accepted", "the episodes have no unknown queries, or none was accepted"),
        ("confused", "known class", "given another class", "every known query was given its class"),
    )
    parts: list[str] = []
    for kind, of, share, reason in kinds:
        found: Confusions = getattr(collected.heads[head], kind)
        worst, title = found.worst(_ROWS), f"Classes: {of} {share}"
        if not worst:
            page.leave_out(title, reason)
            continue
        compared = [getattr(collected.heads[other], kind) for other in others]
        rows = [
            [
                str(banks["novel"].classes[true]),
                f"{100 * rate:.1f}%",
                *(f"{100 * other.share(true):.1f}%" for other in compared),
                f"{_name(answer, banks)} ({100 * part:.0f}%)",
                f"{found.queries[true]:,}",
            ]
            for true, rate, answer, part in worst
        ]
        headings = [of, f"{share}, {head}", *(f"{share}, {other}" for other in others), "most often as", "queries"]
        number = len({true for true, _ in found.answers})
        shown = f"the {len(worst)} worst of {number} classes" if number > len(worst) else f"{number} classes"
        parts += words_table(f"Share of queries {share}, by {of}: {shown}", headings, rows)
    if parts:
        page.add(
            '<section id="confusions"><h2>Which classes are taken for which</h2>',
            "<p>Accepted: at the threshold of open_fpr@95tpr of each episode. Queries are counted over all episodes, in which an "
            "image comes up many times: shares of classes with few images are rough.</p>",
            *parts,
            "</section>",
        )


def _name(answer: int, banks: Mapping[str, FeatureBank]) -> str:
    return str(banks["novel"].classes[answer]) if answer >= 0 else f"{banks['base'].classes[-answer - 1]}, a base class"


def _alarm(page: Page, name: str, alarm: FalseAlarm, opened: Mapping[str, _Opened]) -> str:
    """Write the image of a false alarm and return its HTML."""
    novel, answered = opened["novel"], opened["base" if alarm.support is None else "novel"]
    bank = answered.bank
    example = int(bank.order[bank.starts[alarm.answer]]) if alarm.support is None else alarm.support
    true, answer = (str(each) for each in (novel.bank.classes[alarm.true_class], bank.classes[alarm.answer]))
    shown, name_of_image = [novel.image(alarm.image), answered.image(example)], novel.describe(alarm.image)
    with replacing(page.directory / f"{name}.png") as unfinished:
        _side_by_side(image for image in shown if image is not None).save(unfinished, format="PNG")
    return (
        page.image(name, f"an unknown image of {true}, accepted as {answer}")
        + f"<b>{escape(true)}</b> accepted as <b>{escape(answer)}</b>"
        + (" (base class)" if alarm.support is None else "")
        + f"<br>score {alarm.score:.3f}, threshold {alarm.threshold:.3f}<br>{alarm.margin:.3f} above it, "
        f"episode {alarm.episode}" + (f"<br>{escape(name_of_image)}" if name_of_image is not None else "")
    )


class _Opened:
    """A bank and the images that its features were extracted from, if they are known."""

    def __init__(self, bank: FeatureBank, images: ImageSet | None) -> None:
        self.bank, self._images = bank, images
        skipped = set(bank.skipped)
        # A row of the bank is the number of its image, except where unreadable images were left out.
        self._left = (
            [i for i in range(len(images)) if images.describe(i) not in skipped] if images and skipped else None
        )

    def image(self, row: int) -> Image.Image | None:
        """Return the image of a row of the bank; ``None`` where the bank was given as features."""
        return None if self._images is None else self._images.image(self._number(row))

    def describe(self, row: int) -> str | None:
        """Return where the image of a row of the bank is from: its class directory and file; ``None`` as ``image``."""
        return None if self._images is None else "/".join(Path(self._images.describe(self._number(row))).parts[-2:])

    def _number(self, row: int) -> int:
        return row if self._left is None else self._left[row]


def _side_by_side(images: Iterable[Image.Image]) -> Image.Image:
    """Return images in a row, each fitted into a square; small ones grow by a whole factor, so that pixels stay square."""
    fitted = [_fitted(image) for image in images]
    row = Image.new("RGBA", (_SIDE * len(fitted) + 8 * (len(fitted) - 1), _SIDE))  # transparent, for dark mode
    for i, image in enumerate(fitted):
        row.paste(image, (i * (_SIDE + 8) + (_SIDE - image.width) // 2, (_SIDE - image.height) // 2))
    return row


def _fitted(image: Image.Image) -> Image.Image:
    # A mode without a known white (32 bits, floats) is one that the user's own transform takes: Pillow clips it.
    plain = (image if image.mode in ("I", "F") else opaque(image)).convert("RGB")
    factor = _SIDE / max(plain.size)
    if factor >= 1:
        return plain.resize((plain.width * int(factor), plain.height * int(factor)), Image.Resampling.NEAREST)
    return plain.resize(
        (max(round(plain.width * factor), 1), max(round(plain.height * factor), 1)), Image.Resampling.LANCZOS
    )
