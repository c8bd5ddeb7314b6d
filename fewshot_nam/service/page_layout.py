"""The components of the teaching page: what it looks like before anything happens."""

from __future__ import annotations

import gradio as gr

from fewshot_nam.service import page_html as html

DOWNLOADS = {"copy_to": "Download the memory", "export_to": "Download the ONNX file"}
"""What the buttons of downloads say, by the method of ``TeachingSession`` that makes the file."""
NO_ANSWER = "The answer appears here."
_CAMERA = {
    "width": {"ideal": 640},
    "height": {"ideal": 480},
}  # networks take less, and two images a second go to the server
_FORGET = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-forget]');
  if (button) trigger('click', {label: button.dataset.forget});
});
"""


class Layout:
    """The components, by their names in the page; made within ``gr.Blocks``.

    Args:
        about: HTML on the backbone.
        local: the visitors sit at this machine: they may name its folders, and save to the memory's file.
    """

    def __init__(self, about: str, local: bool) -> None:
        self.local = local
        gr.HTML(
            "<h1 style='margin:0;font-size:1.5em'>Teach it a class from one image</h1>"
            f"<div class='nam-small'>{about}</div>",
            elem_id="about",
        )
        self.status = gr.HTML(html.note("Ready."), elem_id="status")
        self.before = gr.HTML(elem_id="before")
        self.seen = gr.HTML(elem_id="seen")
        self.learned = gr.HTML(elem_id="learned")
        self.shown = gr.Textbox(visible=False)  # this and the next three: what the page's script sends
        self.click = gr.Textbox(visible=False)
        self.tab = gr.Textbox(visible=False)
        self.states = gr.Textbox(visible=False)
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Teach"):
                self._teach()
            with gr.Tab("Refuse"):
                self._refuse()
            with gr.Tab("Measure"):
                self._measure()
            with gr.Tab("Memory"):
                self._memory()

    def _teach(self) -> None:
        """Lay out what learns, and the answers to the camera and to an image."""
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                self.camera = gr.Image(
                    label="Camera",
                    sources=["webcam"],
                    streaming=True,
                    # Gradio's default mirrors the frames themselves, and not only the view of them, and asks for 1920 x 1440.
                    webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": _CAMERA}),
                    elem_id="camera",
                    height=300,
                )
                self.camera_answer = gr.HTML(html.waiting_html(NO_ANSWER), elem_id="camera-answer")
                self.asked = gr.Image(
                    label="Or an image",
                    sources=["upload", "clipboard"],
                    elem_id="asked",
                    height=220,
                    buttons=[],
                )
                self.answer = gr.HTML(html.waiting_html(NO_ANSWER), elem_id="answer")
            with gr.Column(min_width=300):
                self.name = gr.Textbox(label="Name of the class", elem_id="name", max_lines=1, placeholder="mug")
                self.learn_frame = gr.Button("Learn what the camera shows", variant="primary", elem_id="learn-frame")
                self.files = gr.File(label="Images of this class", file_count="multiple", elem_id="files", height=150)
                self.folder = gr.File(label="Or a folder of them", file_count="directory", elem_id="folder", height=130)
                self.learn_files = gr.Button("Learn these images", variant="primary", elem_id="learn-files")
                with gr.Accordion(
                    "A folder on this computer, one folder for each class", open=False, visible=self.local
                ):
                    self.path = gr.Textbox(label="Folder", elem_id="path", max_lines=1, placeholder="photos/")
                    self.learn_path = gr.Button("Learn all classes", elem_id="learn-path")
        with gr.Row():
            self.find = gr.Textbox(label="Find a class", elem_id="find", max_lines=1, max_length=100, scale=3)
            self.undo = gr.Button("Undo", interactive=False, elem_id="undo", scale=1)
        self.classes = gr.HTML(elem_id="classes", js_on_load=_FORGET)

    def _refuse(self) -> None:
        """Lay out images of unknowns, and the rate that is promised."""
        gr.HTML(
            "<div class='nam-small'>Give images of what it is to refuse: what else may come before the camera. "
            "The more, the smaller the rate of false alarms that can be promised.</div>"
        )
        with gr.Row():
            self.unknown_files = gr.File(
                label="Images of unknowns", file_count="multiple", elem_id="unknown-files", height=150
            )
            self.unknown_folder = gr.File(
                label="Or a folder of them", file_count="directory", elem_id="unknown-folder", height=150
            )
        with gr.Row():
            self.rate = gr.Slider(
                0.1,
                50,
                value=5,
                step=0.1,
                label="False-alarm rate, percent of unknown images",
                elem_id="rate",
                scale=3,
            )
            self.calibrate = gr.Button("Set this rate", variant="primary", elem_id="calibrate", scale=1)
            self.clear = gr.Button("Forget these images", elem_id="clear", scale=1)
        self.promise = gr.HTML(elem_id="promise")

    def _measure(self) -> None:
        """Lay out what images are measured."""
        gr.HTML("<div class='nam-small'>Images that were not learned, to see how well classes are distinguished.</div>")
        with gr.Row():
            with gr.Column(min_width=220):
                self.truth = gr.Textbox(label="Known class", elem_id="truth", max_lines=1)
                self.known_files = gr.File(label="Images of it", file_count="multiple", elem_id="known", height=130)
                self.known_path = gr.Textbox(
                    label="Or a folder on this computer, one folder for each class",
                    elem_id="known-path",
                    max_lines=1,
                    visible=self.local,
                )
            self.others = gr.File(label="Images of unknowns", file_count="multiple", elem_id="others", height=230)
            self.bases = gr.File(
                label="Images of base classes, which the backbone was trained on",
                file_count="multiple",
                elem_id="bases",
                height=230,
            )
        self.show = gr.Button("Show scores and confusions", variant="primary", elem_id="show")
        self.checked = gr.HTML(elem_id="checked")

    def _memory(self) -> None:
        """Lay out the file, and downloads."""
        self.about_file = gr.HTML(elem_id="about-file")
        with gr.Row():
            self.save = gr.Button("Save", variant="primary", elem_id="save", visible=self.local)
            self.reload = gr.Button("Read the file again", elem_id="reload", visible=self.local)
            self.make = gr.Button("Prepare a download", elem_id="make")
            self.export = gr.Button("Export to ONNX", elem_id="export")
        self.download = gr.DownloadButton(DOWNLOADS["copy_to"], visible=False, elem_id="download")
        self.download_onnx = gr.DownloadButton(DOWNLOADS["export_to"], visible=False, elem_id="download-onnx")

    @property
    def shared(self) -> list[gr.blocks.Block]:
        """What shows the memory: every change draws it anew."""
        downloads = [self.download, self.download_onnx]
        return [self.status, self.classes, self.undo, self.about_file, self.promise, self.seen, *downloads]
