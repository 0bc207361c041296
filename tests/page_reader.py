"""A reader of HTML pages for tests."""

from html.parser import HTMLParser


class PageReader(HTMLParser):
    """Collect the tags of a page with their attributes, and check that all tags are closed.

    Attributes:
        tags: in the order of the page.
        open: tags around the present place.
    """

    VOID = ("meta", "link", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag
