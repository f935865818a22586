"""The commands of a block of shell, as lists of words."""

import re
import shlex

_SEPARATORS = {";", "&&", "||", "|", "&"}
_KEYWORDS = {"do", "done", "then", "fi", "else", "if"}
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.MULTILINE)
_VARIABLE = re.compile(r"[A-Za-z_]\w*=.*")


def split_commands(text):
    """Return the commands of ``text`` as lists of words; variables that are set before a command are left out."""
    # Comments first: an apostrophe in one would open a quotation.
    lexer = shlex.shlex(_COMMENT.sub("", text).replace("\\\n", " "), posix=True, punctuation_chars=";&|\n")
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    lexer.commenters = ""
    commands = [[]]
    for word in lexer:
        if word in _SEPARATORS or not word.strip("\n;"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [words for words in map(_drop_prefixes, map(_drop_redirection, commands)) if words]


def _drop_redirection(words):
    """Drop ``> FILE`` at the end of a command."""
    return words[:-2] if words[-2:-1] == [">"] else words


def _drop_prefixes(words):
    """Drop keywords of the shell and variables in front of a command; the head of a loop is none."""
    while words and (words[0] in _KEYWORDS or _VARIABLE.fullmatch(words[0])):
        words = words[1:]
    return [] if words[:1] == ["for"] else words
