"""A page's elements, for tests of its content and structure."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Tree(HTMLParser):
    """Elements of a page as (tag, attributes, text) with their ancestors' tags; fails if tags do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str], list[str], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        words: list[str] = []
        self.found.append((tag, {k: v or "" for k, v in attrs}, words, [name for name, _ in self._open]))
        if tag not in VOID:
            self._open.append((tag, words))

    def handle_endtag(self, tag: str) -> None:
        name, _ = self._open.pop()
        assert name == tag

    def handle_data(self, data: str) -> None:
        for _, words in self._open:
            words.append(data)

    def all(self, *tags: str) -> list[tuple[dict[str, str], str, list[str]]]:
        return [(attrs, " ".join("".join(words).split()), up) for tag, attrs, words, up in self.found if tag in tags]
