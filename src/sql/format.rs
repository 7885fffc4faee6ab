//! Rendering syntax trees back to text, in one canonical form: names in lower case without
//! quotes where they need none, keywords in upper case, single blanks, no comments.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, Ident, ObjectNamePart, Query, SelectItem, SetExpr, TableFactor, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::parser::dialect::HeadwaterDialect;
use super::parser::reader::normalise;
use crate::database::name::TableName;

/// An expression as it is stored in a definition. Texts that differ only in case, blanks,
/// comments, needless quotes or parentheses around the whole give the same; reading it
/// again gives the same expression.
pub fn expression_text(expression: &Expr) -> String {
    let mut expression = expression.clone();
    while let Expr::Nested(inner) = expression {
        expression = *inner;
    }
    let ControlFlow::Continue(()) = expression.visit(&mut CanonicalNames);
    expression.to_string()
}

/// A query as it is stored in a view: what the parser moved into the names of tables
/// stands as clauses again, `t VERSION AS OF 5`.
pub fn query_text(query: &Query) -> String {
    let mut query = query.clone();
    let ControlFlow::Continue(()) = query.visit(&mut WrittenNames);
    query.to_string()
}

/// A name as it must be written: in double quotes if it would be read as something else
/// without them.
pub fn quote_identifier(name: &str) -> String {
    canonical(Ident::with_quote('"', name)).to_string()
}

/// Puts names into their canonical form.
struct CanonicalNames;

impl VisitorMut for CanonicalNames {
    type Break = std::convert::Infallible;

    fn pre_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Self::Break> {
        match expression {
            Expr::Identifier(ident) => replace(ident),
            Expr::CompoundIdentifier(idents) => idents.iter_mut().for_each(replace),
            Expr::Function(function) => function.name.0.iter_mut().for_each(|part| {
                if let ObjectNamePart::Identifier(ident) = part {
                    replace(ident);
                }
            }),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Undoes what the parser did to the names of tables.
struct WrittenNames;

impl VisitorMut for WrittenNames {
    type Break = std::convert::Infallible;

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Self::Break> {
        if let TableFactor::Table { name, alias, .. } = factor
            && let Some(ObjectNamePart::Identifier(last)) = name.0.last_mut()
        {
            let given = last.value.clone();
            let parsed = TableName::parse(&given);
            if last.quote_style.is_some() && parsed.name != given {
                // As one name without quotes, because sqlparser writes a version behind the
                // alias, where it can't read it.
                let quoted = quote_identifier(parsed.name);
                let written = TableName {
                    name: &quoted,
                    row_ids: false,
                    ..parsed
                };
                *last = Ident::new(written.to_string());
                let needless = alias.as_ref().is_some_and(|alias| {
                    alias.columns.is_empty()
                        && alias.at.is_none()
                        && normalise(alias.name.clone()) == parsed.name
                });
                if needless {
                    *alias = None;
                }
            }
        }
        ControlFlow::Continue(())
    }
}

fn replace(ident: &mut Ident) {
    *ident = canonical(ident.clone());
}

/// The same name, in lower case without quotes if that is read as the same.
fn canonical(ident: Ident) -> Ident {
    // Which names a text in single quotes stands for depends on where it is.
    if ident.quote_style == Some('\'') {
        return ident;
    }
    let quote_style = needs_quotes(&ident).then_some('"');
    let span = ident.span;
    Ident {
        value: normalise(ident),
        quote_style,
        span,
    }
}

/// Whether a name would be read as something else without quotes. An unquoted name that
/// is a keyword was read as a name where it stood, and is again.
fn needs_quotes(ident: &Ident) -> bool {
    if ident.quote_style.is_none() {
        return false;
    }
    let name = ident.value.as_str();
    let plain = name
        .chars()
        .next()
        .is_some_and(|first| first.is_ascii_lowercase() || first == '_')
        && name
            .chars()
            .all(|other| other.is_ascii_lowercase() || other.is_ascii_digit() || other == '_');
    !plain || (is_keyword(name) && is_reserved(name))
}

fn is_keyword(name: &str) -> bool {
    ALL_KEYWORDS
        .binary_search(&name.to_ascii_uppercase().as_str())
        .is_ok()
}

/// Words that SQL reserves, or that mean something where our statements take a name.
const RESERVED: &[&str] = &[
    "all",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "between",
    "by",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "columns",
    "constraint",
    "create",
    "cross",
    "default",
    "delete",
    "desc",
    "distinct",
    "drop",
    "else",
    "end",
    "except",
    "exclude",
    "exists",
    "extract",
    "false",
    "fetch",
    "for",
    "foreign",
    "from",
    "full",
    "generated",
    "group",
    "having",
    "if",
    "in",
    "inner",
    "insert",
    "intersect",
    "interval",
    "into",
    "is",
    "join",
    "lateral",
    "left",
    "like",
    "limit",
    "natural",
    "not",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "outer",
    "over",
    "partition",
    "primary",
    "references",
    "right",
    "row",
    "rows",
    "select",
    "set",
    "similar",
    "some",
    "table",
    "then",
    "to",
    "trim",
    "true",
    "union",
    "unique",
    "unnest",
    "update",
    "using",
    "values",
    "when",
    "where",
    "window",
    "with",
];

/// Whether a keyword can't be a name wherever a query takes one. The parser knows: it is
/// asked whether it reads the keyword as a name.
fn is_reserved(keyword: &str) -> bool {
    if RESERVED.contains(&keyword) {
        return true;
    }
    let text = format!(
        "SELECT {keyword}, {keyword} + 1, 2 AS {keyword}, {keyword}.x FROM {keyword} \
         JOIN t {keyword} ON {keyword} > 1 WHERE NOT {keyword} AND {keyword} IS NULL ORDER BY {keyword}"
    );
    let read = |text: &str| {
        let mut parser = Parser::new(&HeadwaterDialect).try_with_sql(text).ok()?;
        let query = parser.parse_query().ok()?;
        parser.expect_token(&Token::EOF).ok()?;
        Some(query)
    };
    let is_name = |item: Option<&SelectItem>| {
        matches!(item, Some(SelectItem::UnnamedExpr(Expr::Identifier(_))))
    };
    match (
        read(&text),
        read(&text.replace(keyword, &format!("\"{keyword}\""))),
    ) {
        (Some(plain), Some(quoted)) => {
            let first = match plain.body.as_ref() {
                SetExpr::Select(select) => select.projection.first(),
                _ => None,
            };
            !is_name(first) || plain.to_string() != quoted.to_string().replace('"', "")
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests;
