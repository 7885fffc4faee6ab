//! Cutting text into statements, by the tokens that the parser itself sees.

use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use super::dialect::HeadwaterDialect;

/// Cuts `text` into its statements, as text, without the semicolons and without blanks and
/// comments around them; knows strings, quoted names, comments and `$$ … $$`. Pieces
/// that hold no statement are left out. From a string or comment that does not end,
/// all is one statement.
pub fn split(text: &str) -> Vec<&str> {
    let (tokens, _) = tokens(text);
    let offsets = offsets(text, &tokens);
    let mut statements = Vec::new();
    // Where the statement starts and what of it has been seen.
    let mut open: Option<(usize, usize)> = None;
    for (token, (start, end)) in tokens.iter().zip(offsets.spans) {
        match token.token {
            Token::SemiColon => statements.extend(open.take()),
            Token::Whitespace(_) => {}
            _ => open = Some((open.map_or(start, |(start, _)| start), end)),
        }
    }
    let rest = text.get(offsets.end..).unwrap_or_default();
    if !rest.trim().is_empty() {
        let start = offsets.end + (rest.len() - rest.trim_start().len());
        let end = offsets.end + rest.trim_end().len();
        open = Some((open.map_or(start, |(start, _)| start), end));
    }
    statements.extend(open);
    statements
        .into_iter()
        .filter_map(|(start, end)| text.get(start..end))
        .collect()
}

/// Whether an interactive prompt need not wait for more: the last statement of `text`
/// ends with a semicolon that is not in a string, a quoted name or a comment.
pub fn is_complete(text: &str) -> bool {
    match tokens(text) {
        (tokens, None) => tokens
            .iter()
            .rev()
            .map(|token| &token.token)
            .find(|token| !matches!(token, Token::Whitespace(_)))
            .is_some_and(|last| *last == Token::SemiColon),
        // What is open may be closed on the next line; what is wrong stays wrong.
        (_, Some(wrong)) => !is_open(&wrong) && text.trim_end().ends_with(';'),
    }
}

/// Whether a tokenizer stopped because the text ended within a token.
fn is_open(message: &str) -> bool {
    message.starts_with("Unterminated") || message.contains("EOF")
}

/// The tokens up to the first that is wrong, and what is wrong with it.
fn tokens(text: &str) -> (Vec<TokenWithSpan>, Option<String>) {
    let mut tokens = Vec::new();
    let error = Tokenizer::new(&HeadwaterDialect, text)
        .tokenize_with_location_into_buf(&mut tokens)
        .err();
    (tokens, error.map(|error| error.message))
}

/// Where tokens are, in bytes.
struct Offsets {
    /// Start and end of each.
    spans: Vec<(usize, usize)>,
    /// The end of the last.
    end: usize,
}

/// Turns the lines and columns of `tokens`, which lie side by side, into bytes.
fn offsets(text: &str, tokens: &[TokenWithSpan]) -> Offsets {
    let mut characters = text.char_indices();
    let mut here = Location::new(1, 1);
    let mut offset = 0;
    let mut advance = |to: Location| {
        while (here.line, here.column) < (to.line, to.column) {
            let Some((at, character)) = characters.next() else {
                return text.len();
            };
            offset = at + character.len_utf8();
            here = match character {
                '\n' => Location::new(here.line + 1, 1),
                _ => Location::new(here.line, here.column + 1),
            };
        }
        offset
    };
    let spans: Vec<(usize, usize)> = tokens
        .iter()
        .map(|token| (advance(token.span.start), advance(token.span.end)))
        .collect();
    let end = spans.last().map_or(0, |(_, end)| *end);
    Offsets { spans, end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_separate_statements() {
        assert_eq!(split("SELECT 1; SELECT 2"), ["SELECT 1", "SELECT 2"]);
        assert_eq!(
            split("SELECT 1;\n\n;;SELECT 2;  "),
            ["SELECT 1", "SELECT 2"]
        );
        assert_eq!(split(""), [""; 0]);
        assert_eq!(split(" ;\n "), [""; 0]);
    }

    #[test]
    fn semicolons_in_tokens_do_not() {
        for text in [
            "SELECT 'a;b', 'it''s;'",
            "SELECT \"a;b\"",
            "SELECT `a;b`",
            "SELECT 1 -- one; two\n + 2",
            "SELECT 1 /* one; /* two; */ three; */ + 2",
            "SELECT 1 /*! ; */ + 2",
            "CREATE FUNCTION f() RETURNS INT AS $$ a; b; $$",
            "CREATE FUNCTION f() RETURNS INT AS $py$ a; $$; b; $py$",
            "SELECT E'a\\';b'",
        ] {
            assert_eq!(split(text), [text], "{text}");
            let two = format!("{text}; SELECT 2");
            assert_eq!(split(&two), [text, "SELECT 2"], "{text}");
        }
    }

    #[test]
    fn comments_around_statements_are_left_out() {
        assert_eq!(
            split("-- first\nSELECT 1 -- one\n; /* second */ SELECT 2 -- two"),
            ["SELECT 1", "SELECT 2"]
        );
        assert_eq!(split("-- nothing\n"), [""; 0]);
    }

    #[test]
    fn characters_of_several_bytes_are_counted_right() {
        assert_eq!(
            split("SELECT 'äöü → 🙂'; SELECT 'é;', \"ü\";\r\nSELECT 3"),
            ["SELECT 'äöü → 🙂'", "SELECT 'é;', \"ü\"", "SELECT 3"]
        );
    }

    #[test]
    fn what_does_not_end_is_one_statement() {
        assert_eq!(
            split("SELECT 1; SELECT 'a; b"),
            ["SELECT 1", "SELECT 'a; b"]
        );
        assert_eq!(split("SELECT 1; /* a; b"), ["SELECT 1", "/* a; b"]);
        assert_eq!(split("SELECT $$ a; b"), ["SELECT $$ a; b"]);
    }

    #[test]
    fn a_prompt_waits_for_the_semicolon() {
        for complete in [
            "SELECT 1;",
            "SELECT 1; ",
            "SELECT 1; -- that's it",
            "SELECT 'a';\n",
            "SELECT $$ ; $$;",
            "SELECT 1 /* a */ ; /* b */",
            ";",
        ] {
            assert!(is_complete(complete), "{complete}");
        }
        for open in [
            "",
            "SELECT 1",
            "SELECT 1; SELECT 2",
            "SELECT ';",
            "SELECT 'a;'",
            "SELECT \"a;",
            "SELECT 1 -- ;",
            "SELECT 1 /* ;",
            "SELECT 1 /* /* */ ;",
            "CREATE FUNCTION f() RETURNS INT AS $$ a;",
            "CREATE FUNCTION f() RETURNS INT AS $py$ a; $$;",
        ] {
            assert!(!is_complete(open), "{open}");
        }
    }
}
