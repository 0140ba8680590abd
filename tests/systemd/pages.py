"""The commands that the documentation shows: in blocks of code, in code spans, in comments of what is installed, and in the
manual page.

A block has a language. `sh` is what one types, `console` a transcript: lines that begin with `$ ` are typed, the others are
printed. In `text` a line that begins with `aoai-lb` is a synopsis: `[…]` may be left out, `a|b` is a choice.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from machine import TestFailure

SOURCE = Path(__file__).resolve().parents[2]
# Read first, since what it installs is needed by all others.
FIRST_PAGE = "docs/installation.md"
PAGES = [FIRST_PAGE, "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "conf/**/*", "systemd/**/*", "src/cli/manual.rs"]
NO_TEXT = {".json", ".bicep"}
# A code span with one of these and an argument is a command.
PROGRAMS = (
    "aoai-lb apt apt-get az cargo curl df dpkg getent journalctl jq kill logrotate ls make nsenter openssl printf promtool python3 redis-cli rustup "
    "ssh sudo sudoedit systemctl systemd-analyze tar UPDATE_REFERENCE=1"
).split()
# Languages without commands: configurations, data, and programs for SDKs. tests/integration/documentation.rs and tests/sdk run them.
OTHER_LANGUAGES = {"yaml", "jsonl", "csv"}
SDK_LANGUAGES = {"python", "javascript", "toml"}
SDK_PAGES = {"README.md", "docs/clients.md"}


@dataclass
class Command:
    page: str
    line: int
    text: str
    # What the page shows below it.
    output: list = field(default_factory=list)

    def __str__(self):
        return f"{self.page}:{self.line}: " + self.text.replace("\\\n", "")


def read_commands():
    """The commands of all pages, in their order."""
    commands = []
    for pattern in PAGES:
        files = [path for path in sorted(SOURCE.glob(pattern)) if path.is_file() and path.suffix not in NO_TEXT]
        for path in files:
            page = str(path.relative_to(SOURCE))
            if page != FIRST_PAGE or pattern == FIRST_PAGE:
                text = path.read_text()
                commands += READERS.get(path.suffix, commands_of_comments)(page, text)
    return commands


def commands_of_markdown(page, text):
    commands, prose, block = [], [], None
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.fullmatch(r"( *)```(\S*)", line)
        if fence and block is None:
            block = (number + 1, len(fence[1]), fence[2], [])
        elif fence:
            commands += commands_of_block(page, *block)
            block = None
        elif block:
            block[3].append(line[block[1] :])
        elif line.startswith("    ") and line.strip() and not "".join(prose[-1:]):
            raise TestFailure(f"{page}:{number}: code that is only indented has no language: {line}")
        # Lines of blocks are empty here, so that lines have their numbers.
        prose.append("" if fence or block else line)
    if block:
        raise TestFailure(f"{page}:{block[0]}: a block of code does not end")
    return sorted(commands + commands_of_spans(page, "\n".join(prose)), key=lambda command: command.line)


def commands_of_block(page, number, _, language, lines):
    if language == "sh":
        return typed_commands(page, number, lines)
    if language == "console":
        return transcript(page, number, lines)
    if language == "text":
        synopses = [(number + n, line) for n, line in enumerate(lines) if line.startswith("aoai-lb ")]
        return [Command(page, at, form) for at, line in synopses for form in forms_of_synopsis(line)]
    if language in OTHER_LANGUAGES or language in SDK_LANGUAGES and page in SDK_PAGES:
        return []
    raise TestFailure(f"{page}:{number}: no test runs a block of code in the language '{language}' there")


def typed_commands(page, number, lines):
    """The commands of lines; a line that ends with a backslash goes on in the next one."""
    commands, begun = [], None
    for at, line in enumerate(lines, number):
        begun = begun or Command(page, at, "")
        begun.text += line
        if line.endswith("\\"):
            begun.text += "\n"
        elif begun.text.strip():
            # A comment is no part of a command that is looked up in a table.
            begun.text = re.sub(r"\s+# .*$", "", begun.text)
            commands.append(begun)
            begun = None
        else:
            begun = None
    return commands


def transcript(page, number, lines):
    commands = []
    for at, line in enumerate(lines, number):
        if line.startswith("$ "):
            commands.append(Command(page, at, line[2:]))
        elif commands:
            commands[-1].output.append(line)
        else:
            raise TestFailure(f"{page}:{at}: a transcript does not begin with a command")
    return commands


def forms_of_synopsis(line):
    """The command without what may be left out, and with each of these alone."""
    parts = re.split(r"\s*\[([^\]]*)\]", line)
    base = "".join(parts[::2]).strip()
    forms = [base]
    for option in parts[1::2]:
        head, _, choices = option.rpartition(" ")
        forms += [f"{base} {head} {choice}".replace("  ", " ") for choice in choices.split("|")]
    return forms


def commands_of_spans(page, prose):
    """The commands of code spans, which may go on in the next line."""
    commands = []
    for span in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose):
        # As in the comments of YAML, KQL and shell, and as `|` is written in a table.
        text = re.sub(r"\s*\n\s*(?:#|//)?\s*", " ", span[1]).replace("\\|", "|").strip("\\")
        program, _, arguments = text.partition(" ")
        if arguments and (program in PROGRAMS or program.startswith("./")):
            commands.append(Command(page, prose.count("\n", 0, span.start()) + 1, text))
    return commands


def commands_of_comments(page, text):
    """The commands of code spans, and of indented lines in comments."""
    indented = [
        Command(page, number, line[1].strip())
        for number, content in enumerate(text.splitlines(), 1)
        if (line := re.fullmatch(r"#\s{2,}(\S.*)", content)) and line[1].split()[0] in PROGRAMS
    ]
    return sorted(indented + commands_of_spans(page, text), key=lambda command: command.line)


def commands_of_manual(page, text):
    """The examples of the manual page, in the text that becomes it."""
    begin = text.index(".SH EXAMPLES\n.nf\n")
    examples = text[begin : text.index(".fi", begin)].splitlines()[2:]
    first_line = text.count("\n", 0, begin) + 3
    return typed_commands(page, first_line, [line.replace("\\-", "-") for line in examples])


READERS = {".md": commands_of_markdown, ".rs": commands_of_manual}


if __name__ == "__main__":
    print(*read_commands(), sep="\n")
