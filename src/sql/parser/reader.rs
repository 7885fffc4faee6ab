//! Tokens, read from left to right: what all statements of the dialect are made of.

use datafusion::sql::TableReference;
use datafusion::sql::parser::{DFParser, DFParserBuilder};
use datafusion::sql::sqlparser::ast::{Expr, Ident, ObjectName, Query};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use super::dialect::HeadwaterDialect;
use super::failure::{Failure, Read};
use crate::Error;
use crate::sql::options;
use crate::sql::statement::StatementOption;

static DIALECT: HeadwaterDialect = HeadwaterDialect;

/// How deep expressions and queries may be nested.
const RECURSION_LIMIT: usize = 128;

/// Reads tokens of a text.
pub(super) struct Reader {
    /// DataFusion's parser, for its own statements.
    pub(super) datafusion: DFParser<'static>,
}

impl Reader {
    pub(super) fn new(text: &str) -> Read<Self> {
        let mut tokens = Tokenizer::new(&DIALECT, text).tokenize_with_location()?;
        quote_tags(&mut tokens);
        end_before_data(&mut tokens);
        let datafusion = DFParserBuilder::new(tokens)
            .with_dialect(&DIALECT)
            .with_recursion_limit(RECURSION_LIMIT)
            .build()?;
        Ok(Self { datafusion })
    }

    /// sqlparser's parser, at the same place.
    pub(super) fn parser(&mut self) -> &mut Parser<'static> {
        &mut self.datafusion.parser
    }

    /// The nth token from here, without blanks and comments.
    pub(super) fn token(&self, n: usize) -> &TokenWithSpan {
        self.datafusion.parser.peek_nth_token_ref(n)
    }

    /// Where the next token is.
    pub(super) fn location(&self) -> Location {
        self.token(0).span.start
    }

    /// Whether the next tokens are these words, which blanks separate; in any case, but
    /// not quoted.
    pub(super) fn at(&self, words: &str) -> bool {
        self.at_nth(0, words)
    }

    /// As [`at`](Self::at), from the nth token on.
    pub(super) fn at_nth(&self, n: usize, words: &str) -> bool {
        words.split(' ').enumerate().all(|(i, word)| {
            matches!(&self.token(n + i).token, Token::Word(there)
                if there.quote_style.is_none() && there.value.eq_ignore_ascii_case(word))
        })
    }

    /// Whether the next token is one of these words.
    pub(super) fn at_any(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.at(word))
    }

    /// Whether the next token is this one.
    pub(super) fn at_token(&self, token: &Token) -> bool {
        self.token(0).token == *token
    }

    /// Whether the nth token ends a statement.
    pub(super) fn at_nth_end(&self, n: usize) -> bool {
        matches!(self.token(n).token, Token::SemiColon | Token::EOF)
    }

    /// Takes these words if they come next.
    pub(super) fn eat(&mut self, words: &str) -> bool {
        let there = self.at(words);
        if there {
            for _ in words.split(' ') {
                self.parser().advance_token();
            }
        }
        there
    }

    /// Takes this token if it comes next.
    pub(super) fn eat_token(&mut self, token: &Token) -> bool {
        self.parser().consume_token(token)
    }

    /// Takes these words, which must come next.
    pub(super) fn expect(&mut self, words: &str) -> Read<()> {
        if self.eat(words) {
            Ok(())
        } else {
            self.expected(words)
        }
    }

    /// Takes this token, which must come next.
    pub(super) fn expect_token(&mut self, token: &Token) -> Read<()> {
        if self.eat_token(token) {
            Ok(())
        } else {
            self.expected(&format!("'{token}'"))
        }
    }

    /// The statement must end here, or go on with what `else_expected` says.
    pub(super) fn expect_end(&self, else_expected: &str) -> Read<()> {
        if self.at_nth_end(0) {
            Ok(())
        } else if else_expected.is_empty() {
            self.expected("the end of the statement")
        } else {
            self.expected(&format!("{else_expected} or the end of the statement"))
        }
    }

    /// Something else should come next.
    pub(super) fn expected<T>(&self, what: &str) -> Read<T> {
        let found = match &self.token(0).token {
            Token::EOF => "the end of the text".to_string(),
            other => format!("'{other}'"),
        };
        Err(Failure::syntax(
            format!("expected {what}, found {found}"),
            self.location(),
        ))
    }

    /// As [`expected`](Self::expected), with the mend.
    pub(super) fn expected_with_hint<T>(&self, what: &str, mend: String) -> Read<T> {
        match self.expected::<T>(what) {
            Err(Failure::Syntax { message, at, .. }) => Err(Failure::Syntax {
                message,
                at,
                hint: Some(mend),
            }),
            other => other,
        }
    }

    /// The name of a table or view, of one to three parts.
    pub(super) fn table(&mut self) -> Read<TableReference> {
        let at = self.location();
        let name = self.parser().parse_object_name(false)?;
        table_reference(&name).ok_or_else(|| {
            Failure::syntax(
                format!("a name has at most three parts, catalog.schema.table; '{name}' has more"),
                at,
            )
        })
    }

    /// The name of a column or alias.
    pub(super) fn name(&mut self) -> Read<String> {
        self.ident().map(normalise)
    }

    /// As [`name`](Self::name), as a token of a syntax tree.
    pub(super) fn ident(&mut self) -> Read<Ident> {
        match &self.token(0).token {
            Token::Word(_) => Ok(self.parser().parse_identifier()?),
            Token::SingleQuotedString(text) => {
                let mend = format!(
                    "write \"{text}\": single quotes are for text, double quotes for names"
                );
                self.expected_with_hint("a name", mend)
            }
            _ => self.expected("a name"),
        }
    }

    /// What `item` reads, one or several times, with commas between.
    pub(super) fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let mut items = vec![item(self)?];
        while self.eat_token(&Token::Comma) {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// A list of names in parentheses, none of them twice.
    pub(super) fn names_in_parentheses(&mut self, of: &str) -> Read<Vec<String>> {
        self.expect_token(&Token::LParen)?;
        let names = self.list(Self::name)?;
        if !self.at_token(&Token::RParen) {
            return self.expected("',' or ')'");
        }
        self.expect_token(&Token::RParen)?;
        no_duplicates(&names, of)?;
        Ok(names)
    }

    pub(super) fn expression(&mut self) -> Read<Expr> {
        Ok(self.parser().parse_expr()?)
    }

    /// An expression in parentheses, which computes a column.
    pub(super) fn column_expression(&mut self) -> Read<Expr> {
        self.expect_token(&Token::LParen)?;
        if self.at("SELECT") || self.at("WITH") {
            return Err(Error::invalid(
                "the expression of a computed column can't be a query: it is computed from the row's own columns",
            )
            .into());
        }
        let expression = self.expression()?;
        if !self.at_token(&Token::RParen) {
            return self.expected("an operator or ')'");
        }
        self.expect_token(&Token::RParen)?;
        Ok(expression)
    }

    /// A query, which changes nothing.
    pub(super) fn query(&mut self) -> Read<Box<Query>> {
        if self.at_any(&["INSERT", "UPDATE", "DELETE", "MERGE"]) {
            return self.expected("a query");
        }
        let query = self.parser().parse_query()?;
        super::check_query(&query)?;
        Ok(query)
    }

    /// `WITH (name = value, …)`, if it comes next.
    pub(super) fn with_options(&mut self) -> Read<Option<Vec<StatementOption>>> {
        if self.at("WITH") {
            self.expect("WITH")?;
            Ok(Some(options::read(self.parser())?))
        } else {
            Ok(None)
        }
    }
}

/// Makes of each tag behind VERSION AS OF, where sqlparser takes numbers only, a number that is the tag
/// in its quotes.
fn quote_tags(tokens: &mut [TokenWithSpan]) {
    const CLAUSE: [&str; 3] = ["VERSION", "AS", "OF"];
    let mut seen = 0;
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) => {}
            Token::SingleQuotedString(tag) if seen == CLAUSE.len() => {
                token.token = Token::Number(format!("'{tag}'"), false);
                seen = 0;
            }
            Token::Word(word) if word.quote_style.is_none() => {
                let is = |known: &str| word.value.eq_ignore_ascii_case(known);
                seen = match CLAUSE.get(seen) {
                    Some(next) if is(next) => seen + 1,
                    _ => usize::from(is(CLAUSE[0])),
                };
            }
            _ => seen = 0,
        }
    }
}

/// Makes WITH [NO] DATA at the end of a statement no part of the query before it: sqlparser would read
/// on behind GROUP BY and names of types, where WITH can mean something else. It goes by the keyword of
/// a word, so WITH gets one that ends a query anywhere; we go by the text.
fn end_before_data(tokens: &mut [TokenWithSpan]) {
    // The places of the last three words, nearest first, as far as nothing else is between them.
    let mut words: [Option<usize>; 3] = [None; 3];
    let mut ends = Vec::new();
    let text = |index: Option<usize>| match index.map(|index| &tokens[index].token) {
        Some(Token::Word(word)) => word.value.to_ascii_uppercase(),
        _ => String::new(),
    };
    for (index, token) in tokens.iter().enumerate() {
        match &token.token {
            Token::Whitespace(_) => {}
            Token::Word(word) if word.quote_style.is_none() => {
                words = [Some(index), words[0], words[1]];
            }
            Token::SemiColon | Token::EOF => ends.push(std::mem::take(&mut words)),
            _ => words = [None; 3],
        }
    }
    ends.push(words);
    let found: Vec<usize> = ends
        .into_iter()
        .filter_map(|words| match words.map(text) {
            [data, with, _] if data == "DATA" && with == "WITH" => words[1],
            [data, no, with] if data == "DATA" && no == "NO" && with == "WITH" => words[2],
            _ => None,
        })
        .collect();
    for index in found {
        if let Some(TokenWithSpan {
            token: Token::Word(word),
            ..
        }) = tokens.get_mut(index)
        {
            word.keyword = Keyword::EXPLAIN;
        }
    }
}

/// Unquoted names to lower case.
pub(in crate::sql) fn normalise(ident: Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value,
        None => ident.value.to_ascii_lowercase(),
    }
}

/// A name of one to three parts.
pub(super) fn table_reference(name: &ObjectName) -> Option<TableReference> {
    let mut parts = name
        .0
        .iter()
        .map(|part| part.as_ident().cloned().map(normalise))
        .collect::<Option<Vec<_>>>()?
        .into_iter();
    Some(
        match (parts.next()?, parts.next(), parts.next(), parts.next()) {
            (table, None, ..) => TableReference::bare(table),
            (schema, Some(table), None, _) => TableReference::partial(schema, table),
            (catalog, Some(schema), Some(table), None) => {
                TableReference::full(catalog, schema, table)
            }
            _ => return None,
        },
    )
}

/// Refuses a name that stands twice in a list of `of`.
pub(super) fn no_duplicates<'a>(
    names: impl IntoIterator<Item = &'a String>,
    of: &str,
) -> Result<(), Error> {
    let mut seen = std::collections::HashSet::new();
    match names.into_iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(Error::invalid(format!("{of} '{name}' is named twice"))),
        None => Ok(()),
    }
}
