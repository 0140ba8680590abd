//! The words of a C# expression: enough to find its end, and to recognise what it refers to. Comments are skipped.

/// A word of an expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::import_apim) enum Token {
    /// A name or keyword.
    Word(String),
    /// A number, as it is written.
    Number(String),
    /// What is between quotes, without escapes.
    Text(String),
    /// An operator of two characters.
    Operator(&'static str),
    /// Any other character.
    Symbol(char),
}

impl Token {
    pub(in crate::import_apim) fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(found) if found == word)
    }
}

const OPERATORS: [&str; 8] = ["==", "!=", ">=", "<=", "&&", "||", "=>", "??"];

/// The length of the expression that `text` begins with, which is `@(…)` or `@{…}`. Characters may be written as
/// references, such as `&quot;`. `None` if it does not end.
pub(super) fn expression_length(text: &str) -> Option<usize> {
    let mut lexer = Lexer { text, at: 1, decodes_references: true };
    let mut depth = 0_usize;
    while let Some(token) = lexer.next_token() {
        match token {
            Token::Symbol('(' | '{' | '[') => depth += 1,
            Token::Symbol(')' | '}' | ']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return Some(lexer.at);
        }
    }
    None
}

/// The words of an expression, in which references are resolved already.
pub(in crate::import_apim) fn tokens(expression: &str) -> Vec<Token> {
    let mut lexer = Lexer { text: expression, at: 0, decodes_references: false };
    std::iter::from_fn(|| lexer.next_token()).collect()
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
    decodes_references: bool,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The next character and its length as it is written.
    fn peek(&self) -> Option<(char, usize)> {
        let first = self.rest().chars().next()?;
        if first == '&' && self.decodes_references {
            return Some(decode_reference(self.rest()).unwrap_or((first, 1)));
        }
        Some((first, first.len_utf8()))
    }

    fn next_char(&mut self) -> Option<char> {
        let (c, length) = self.peek()?;
        self.at += length;
        Some(c)
    }

    /// Moves on if the next character is this one.
    fn take(&mut self, wanted: char) -> bool {
        let is_next = self.peek().is_some_and(|(c, _)| c == wanted);
        if is_next {
            self.next_char();
        }
        is_next
    }

    fn next_token(&mut self) -> Option<Token> {
        loop {
            let c = self.next_char()?;
            match c {
                c if c.is_whitespace() => {}
                '/' if self.take('/') => while self.next_char().is_some_and(|c| c != '\n') {},
                '/' if self.take('*') => self.skip_block_comment(),
                '"' | '\'' => return Some(self.text_token(c)),
                '$' if self.take('"') => return Some(self.text_token('"')),
                '$' if self.rest().starts_with('@') => {}
                '@' if self.take('"') => return Some(self.verbatim_token()),
                c if c.is_alphabetic() || c == '_' => return Some(Token::Word(self.word(c))),
                c if c.is_ascii_digit() => return Some(Token::Number(self.word(c))),
                c => return Some(self.operator(c)),
            }
        }
    }

    fn skip_block_comment(&mut self) {
        while let Some(c) = self.next_char() {
            if c == '*' && self.take('/') {
                return;
            }
        }
    }

    /// What follows an opening quote. A quote without its second one on the same line is a symbol.
    fn text_token(&mut self, quote: char) -> Token {
        let start = self.at;
        let mut text = String::new();
        while let Some(c) = self.next_char() {
            match c {
                c if c == quote => return Token::Text(text),
                '\n' => break,
                '\\' => text.extend(self.next_char()),
                c => text.push(c),
            }
        }
        self.at = start;
        Token::Symbol(quote)
    }

    /// What follows `@"`: it may have line breaks, and `""` for a quote.
    fn verbatim_token(&mut self) -> Token {
        let mut text = String::new();
        while let Some(c) = self.next_char() {
            if c == '"' && !self.take('"') {
                break;
            }
            text.push(c);
        }
        Token::Text(text)
    }

    fn word(&mut self, first: char) -> String {
        let mut word = String::from(first);
        while let Some((c, length)) = self.peek()
            && (c.is_alphanumeric() || c == '_')
        {
            self.at += length;
            word.push(c);
        }
        word
    }

    fn operator(&mut self, first: char) -> Token {
        let second = self.peek().map(|(c, _)| c);
        let is_written = |operator: &&&str| {
            let mut chars = operator.chars();
            chars.next() == Some(first) && chars.next() == second
        };
        match OPERATORS.iter().find(is_written) {
            Some(operator) => {
                self.next_char();
                Token::Operator(operator)
            }
            None => Token::Symbol(first),
        }
    }
}

/// The character that a reference such as `&lt;` stands for, and the length of the reference.
fn decode_reference(text: &str) -> Option<(char, usize)> {
    // `&#x10FFFF;` is the longest.
    let end = text.bytes().take(11).position(|byte| byte == b';')?;
    Some((decode_reference_name(text.get(1..end)?)?, end + 1))
}

/// The character that the name of a reference stands for, such as `lt` or `#60`.
pub(super) fn decode_reference_name(name: &str) -> Option<char> {
    let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
    let c = match name {
        "quot" => '"',
        "apos" => '\'',
        "lt" => '<',
        "gt" => '>',
        "amp" => '&',
        _ => match name.strip_prefix("#x") {
            Some(digits) => number(digits, 16)?,
            None => number(name.strip_prefix('#')?, 10)?,
        },
    };
    (c != '\0').then_some(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_ends_with_its_bracket() {
        for (text, expected) in [
            (r#"@(a && b < c)" />"#, Some("@(a && b < c)")),
            (r#"@(x["k"] + ")")" />"#, Some(r#"@(x["k"] + ")")"#)),
            ("@{ // it's ) } \" here\n return 1; }\" />", Some("@{ // it's ) } \" here\n return 1; }")),
            ("@{ /* ) } */ }", Some("@{ /* ) } */ }")),
            (r#"@(x[&quot;)&quot;] &amp;&amp; y)" "#, Some("@(x[&quot;)&quot;] &amp;&amp; y)")),
            (r#"@("a\")")"#, Some(r#"@("a\")")"#)),
            (r#"@(@"c:\" + x)"#, Some(r#"@(@"c:\" + x)"#)),
            (r#"@($"{a}:{b})" )"#, Some(r#"@($"{a}:{b})" )"#)),
            ("@(x == ')')", Some("@(x == ')')")),
            ("@(\"https://a.b\")", Some("@(\"https://a.b\")")),
            ("@(a", None),
            ("@{ \"", None),
            ("@(/*", None),
        ] {
            let found = expression_length(text).map(|length| &text[..length]);
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn an_expression_is_split_into_words() {
        let found = tokens("@(int.Parse(v[\"n\"]) % 2 >= 0x1 // no\n)");
        let word = |word: &str| Token::Word(word.to_owned());
        let expected = [
            Token::Symbol('@'),
            Token::Symbol('('),
            word("int"),
            Token::Symbol('.'),
            word("Parse"),
            Token::Symbol('('),
            word("v"),
            Token::Symbol('['),
            Token::Text("n".to_owned()),
            Token::Symbol(']'),
            Token::Symbol(')'),
            Token::Symbol('%'),
            Token::Number("2".to_owned()),
            Token::Operator(">="),
            Token::Number("0x1".to_owned()),
            Token::Symbol(')'),
        ];
        assert_eq!(found, expected);
    }
}
