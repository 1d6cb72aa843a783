"""What a browser makes of a page, as far as the standard library sees it."""

from html.parser import HTMLParser

_VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Elements with their attributes, and the texts in them, of a page that must be well formed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data))

    @property
    def words(self):
        """All that is seen."""
        return "\n".join(text for tag, text in self.texts if tag != "style")

    def tags(self):
        return {tag for tag, _ in self.elements}

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]
