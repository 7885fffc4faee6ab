//! Wildcards that leave the hidden columns out.

use datafusion::sql::sqlparser::ast::{
    ExceptSelectItem, ExcludeSelectItem, Ident, ObjectName, SelectItem,
    SelectItemQualifiedWildcardKind, WildcardAdditionalOptions,
};

use super::HIDDEN;
use crate::Error;
use crate::sql::parser::reader::normalise;

pub(super) fn cannot_write_out(why: &str) -> Error {
    Error::invalid(format!(
        "'*' can't leave out _rowid and _rowaddr, which this statement names: {why}"
    ))
    .with_hint("write the columns out")
}

pub(super) fn qualified_wildcard(
    name: ObjectName,
    options: WildcardAdditionalOptions,
) -> SelectItem {
    SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), options)
}

/// A wildcard at the same place as `options`, without any.
pub(super) fn wildcard_like(options: &WildcardAdditionalOptions) -> WildcardAdditionalOptions {
    WildcardAdditionalOptions {
        wildcard_token: options.wildcard_token.clone(),
        ..WildcardAdditionalOptions::default()
    }
}

/// Adds the hidden columns to what a wildcard leaves out.
pub(super) fn hide(mut options: WildcardAdditionalOptions) -> WildcardAdditionalOptions {
    let hidden = |left_out: &[String]| -> Vec<Ident> {
        HIDDEN
            .into_iter()
            .filter(|name| !left_out.iter().any(|there| there == name))
            .map(Ident::new)
            .collect()
    };
    // Both clauses at once can't be written, so the one that is there is made longer.
    if let Some(exclude) = options.opt_exclude.take() {
        let mut names = match exclude {
            ExcludeSelectItem::Single(name) => vec![name],
            ExcludeSelectItem::Multiple(names) => names,
        };
        let left_out: Vec<String> = names
            .iter()
            .filter_map(|name| name.0.last()?.as_ident().cloned().map(normalise))
            .collect();
        names.extend(
            hidden(&left_out)
                .into_iter()
                .map(|ident| ObjectName::from(vec![ident])),
        );
        options.opt_exclude = Some(ExcludeSelectItem::Multiple(names));
        return options;
    }
    let mut idents = match options.opt_except.take() {
        Some(except) => std::iter::once(except.first_element)
            .chain(except.additional_elements)
            .collect(),
        None => Vec::new(),
    };
    let left_out: Vec<String> = idents.iter().cloned().map(normalise).collect();
    idents.extend(hidden(&left_out));
    let mut idents = idents.into_iter();
    options.opt_except = idents.next().map(|first_element| ExceptSelectItem {
        first_element,
        additional_elements: idents.collect(),
    });
    options
}
