"""What the suites with made-up states have in common."""


class Suite:
    def __init__(self, page, axe):
        self.page, self.axe = page, axe

    def headline(self):
        return self.page.evaluate("document.getElementById('headline-text').textContent")

    def open_with_trouble(self, mock):
        self.page.set_viewport()
        self.page.open(mock.url)
        self.page.wait_until(lambda: self.page.texts("#trouble-table > tbody"), "expected the recent trouble")

    def names_in_order(self):
        return self.page.texts("#backend-table [data-field=name]")

    def row_of(self, name, table="#backend-table"):
        """The text of the row with this name, on one line."""
        rows = self.page.evaluate("[...document.querySelectorAll(arguments[0])].map(n => n.innerText)", f"{table} > tbody > tr.main")
        return next(" ".join(row.split()) for row in rows if name in row)

    def assert_accessible(self, where):
        """axe-core finds no violation. It is injected by the debugger, so that the policy of the page need not allow it."""
        self.page.run_devtools_command("Runtime.evaluate", expression=self.axe)
        violations = self.page.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document, {resultTypes: ['violations'],"
            " runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
            ".then(found => done(found.violations.map(v => `${v.id} (${v.impact}): ${v.nodes.slice(0, 3)"
            ".map(n => n.html.slice(0, 150) + ' ' + n.failureSummary).join(' | ')}`)), problem => done([String(problem)]))"
        )
        assert violations == [], f"{where}: " + "\n".join(violations)

    def assert_no_horizontal_scroll(self, where):
        """The content is not wider than the window."""
        content_width, window_width = self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert content_width <= window_width, f"{where}: {content_width} px in a window of {window_width}"

    def assert_tip(self, selector, expected):
        """The pointer on the element shows what it means."""
        from selenium.webdriver import ActionChains

        ActionChains(self.page.driver).move_to_element(self.page.find(selector)).perform()
        self.page.wait_until(lambda: expected in self.page.text("#tip"), f"expected the tip {expected}")
