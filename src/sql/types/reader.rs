//! Reading types from tokens.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, TimeUnit};
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;

use crate::nearest;
use crate::sql::parser::failure::{Failure, Read};
use crate::sql::parser::reader::normalise;

/// Names without parameters, and what they stand for.
pub(super) const SIMPLE: &[(&str, DataType)] = &[
    ("BOOLEAN", DataType::Boolean),
    ("BOOL", DataType::Boolean),
    ("INT16", DataType::Int16),
    ("INT32", DataType::Int32),
    ("INT64", DataType::Int64),
    ("UINT8", DataType::UInt8),
    ("UINT16", DataType::UInt16),
    ("UINT32", DataType::UInt32),
    ("UINT64", DataType::UInt64),
    ("INT8", DataType::Int8),
    ("UTINYINT", DataType::UInt8),
    ("USMALLINT", DataType::UInt16),
    ("UINTEGER", DataType::UInt32),
    ("UINT", DataType::UInt32),
    ("UBIGINT", DataType::UInt64),
    ("FLOAT16", DataType::Float16),
    ("HALF", DataType::Float16),
    ("HALFFLOAT", DataType::Float16),
    ("FLOAT32", DataType::Float32),
    ("FLOAT4", DataType::Float32),
    ("REAL", DataType::Float32),
    ("FLOAT64", DataType::Float64),
    ("FLOAT8", DataType::Float64),
    ("DATE", DataType::Date32),
    ("DATE32", DataType::Date32),
    ("DATE64", DataType::Date64),
    ("TEXT", DataType::Utf8),
    ("STRING", DataType::Utf8),
    ("UTF8", DataType::Utf8),
    ("LARGE_UTF8", DataType::LargeUtf8),
    ("LARGE_STRING", DataType::LargeUtf8),
    ("BYTEA", DataType::Binary),
    ("BYTES", DataType::Binary),
    ("LARGE_BINARY", DataType::LargeBinary),
    ("INTERVAL", DataType::Interval(IntervalUnit::MonthDayNano)),
    ("TIMESTAMP_S", DataType::Timestamp(TimeUnit::Second, None)),
    (
        "TIMESTAMP_MS",
        DataType::Timestamp(TimeUnit::Millisecond, None),
    ),
    (
        "TIMESTAMP_US",
        DataType::Timestamp(TimeUnit::Microsecond, None),
    ),
    (
        "TIMESTAMP_NS",
        DataType::Timestamp(TimeUnit::Nanosecond, None),
    ),
    ("NULL", DataType::Null),
];

/// Integers that may be followed by a display width and by UNSIGNED: name, signed, unsigned.
const INTEGERS: &[(&str, DataType, DataType)] = &[
    ("INT", DataType::Int32, DataType::UInt32),
    ("INTEGER", DataType::Int32, DataType::UInt32),
    ("TINYINT", DataType::Int8, DataType::UInt8),
    ("SMALLINT", DataType::Int16, DataType::UInt16),
    ("BIGINT", DataType::Int64, DataType::UInt64),
    ("INT2", DataType::Int16, DataType::UInt16),
    ("INT4", DataType::Int32, DataType::UInt32),
];

/// Texts and byte strings whose length is accepted and ignored.
const WITH_LENGTH: &[(&str, DataType)] = &[
    ("VARCHAR", DataType::Utf8),
    ("NVARCHAR", DataType::Utf8),
    ("CHAR", DataType::Utf8),
    ("CHARACTER", DataType::Utf8),
    ("BINARY", DataType::Binary),
    ("VARBINARY", DataType::Binary),
];

/// Names that [`TypeReader::base`] knows besides the tables above, for proposals.
const OTHERS: &[&str] = &[
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
    "NUMERIC",
    "DECIMAL128",
    "DECIMAL256",
    "FIXED_SIZE_BINARY",
    "TIME",
    "TIME32",
    "TIME64",
    "TIMESTAMP",
    "TIMESTAMPTZ",
    "DATETIME",
    "DURATION",
    "STRUCT",
    "MAP",
    "ARRAY",
    "LIST",
    "LARGE_LIST",
    "FIXED_SIZE_LIST",
    "DICTIONARY",
    "BLOB",
];

/// Reads a type from where `parser` stands, as a field called `name`.
pub(in crate::sql) fn read(parser: &mut Parser<'_>, name: &str, nullable: bool) -> Read<FieldRef> {
    let mut reader = TypeReader {
        parser,
        closed_ahead: false,
        depth: 0,
    };
    let field = reader.field(name)?;
    if reader.closed_ahead {
        return reader.wrong("this '>' closes nothing");
    }
    Ok(Arc::new(field.with_nullable(nullable)))
}

/// How deep types may be nested.
const MAX_DEPTH: usize = 64;

struct TypeReader<'p, 'a> {
    parser: &'p mut Parser<'a>,
    /// The first half of `>>` was taken as one `>`, and its second is still to be read.
    closed_ahead: bool,
    depth: usize,
}

impl TypeReader<'_, '_> {
    /// A type with what may follow it in brackets.
    fn field(&mut self, name: &str) -> Read<Field> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.wrong("the type is nested too deeply");
        }
        let mut field = self.base(name)?;
        while !self.closed_ahead && self.eat(&Token::LBracket) {
            let item = Arc::new(field.with_name("item"));
            let list = match self.parser.peek_token_ref().token {
                Token::RBracket => DataType::List(item),
                _ => DataType::FixedSizeList(item, self.length()?),
            };
            self.expect(&Token::RBracket)?;
            field = Field::new(name, list, true);
        }
        self.depth -= 1;
        Ok(field)
    }

    fn base(&mut self, name: &str) -> Read<Field> {
        let at = self.parser.peek_token_ref().span.start;
        let Token::Word(word) = &self.parser.peek_token_ref().token else {
            return self.expected("a type");
        };
        let given = word.value.clone();
        let upper = if word.quote_style.is_none() {
            given.to_ascii_uppercase()
        } else {
            given.clone()
        };
        self.parser.advance_token();
        if upper == "BLOB" {
            return Ok(lance::blob_field(name, true));
        }
        let simple = SIMPLE.iter().find(|(known, _)| *known == upper);
        let integer = INTEGERS.iter().find(|(known, ..)| *known == upper);
        let with_length = WITH_LENGTH.iter().find(|(known, _)| *known == upper);
        let data_type = if let Some((_, data_type)) = simple {
            data_type.clone()
        } else if let Some((_, signed, unsigned)) = integer {
            self.ignored_length()?;
            if self.word("UNSIGNED") {
                unsigned.clone()
            } else {
                let _ = self.word("SIGNED");
                signed.clone()
            }
        } else if let Some((_, data_type)) = with_length {
            let _ = self.word("VARYING");
            self.ignored_length()?;
            data_type.clone()
        } else {
            match upper.as_str() {
                "FLOAT" => match self.parameter()? {
                    None | Some(1..=24) => DataType::Float32,
                    Some(25..=53) => DataType::Float64,
                    Some(_) => return self.wrong("FLOAT takes 1 to 53 bits"),
                },
                "DOUBLE" => {
                    let _ = self.word("PRECISION");
                    DataType::Float64
                }
                "DECIMAL" | "NUMERIC" | "DEC" | "DECIMAL128" | "DECIMAL256" => {
                    self.decimal(&upper)?
                }
                "FIXED_SIZE_BINARY" => {
                    let close = self.open(&[Token::LParen, Token::LBracket])?;
                    let length = self.length()?;
                    self.expect(&close)?;
                    DataType::FixedSizeBinary(length)
                }
                "TIME" | "TIME32" | "TIME64" => self.time(&upper)?,
                "TIMESTAMP" | "TIMESTAMPTZ" | "DATETIME" => self.timestamp(&upper)?,
                "DURATION" => DataType::Duration(self.unit()?.unwrap_or(TimeUnit::Nanosecond)),
                "STRUCT" => self.structure()?,
                "MAP" => self.map()?,
                "ARRAY" | "LIST" => {
                    DataType::List(Arc::new(self.in_brackets(|reader| reader.element("item"))?))
                }
                "LARGE_LIST" => DataType::LargeList(Arc::new(
                    self.in_brackets(|reader| reader.element("item"))?,
                )),
                "FIXED_SIZE_LIST" => {
                    let (item, length) = self.in_brackets(|reader| {
                        let item = reader.element("item")?;
                        reader.expect(&Token::Comma)?;
                        Ok((item, reader.length()?))
                    })?;
                    DataType::FixedSizeList(Arc::new(item), length)
                }
                "DICTIONARY" => {
                    let (key, value) = self.in_brackets(|reader| {
                        let key = reader.field("")?;
                        reader.expect(&Token::Comma)?;
                        Ok((key, reader.field("")?))
                    })?;
                    if !key.data_type().is_integer() {
                        return self.wrong("the keys of a DICTIONARY are integers");
                    }
                    DataType::Dictionary(
                        Box::new(key.data_type().clone()),
                        Box::new(value.data_type().clone()),
                    )
                }
                _ => {
                    let known = INTEGERS
                        .iter()
                        .map(|(known, ..)| *known)
                        .chain(SIMPLE.iter().map(|(known, _)| *known))
                        .chain(WITH_LENGTH.iter().map(|(known, _)| *known))
                        .chain(OTHERS.iter().copied())
                        .filter(|known| *known != "NULL");
                    return Err(Failure::Syntax {
                        message: format!("unknown type '{given}'"),
                        at,
                        hint: nearest(&upper, known).map(|near| format!("did you mean {near}?")),
                    });
                }
            }
        };
        Ok(Field::new(name, data_type, true))
    }

    /// A type within another, with NOT NULL.
    fn element(&mut self, name: &str) -> Read<Field> {
        let field = self.field(name)?;
        if !self.closed_ahead && self.word("NOT") {
            if !self.word("NULL") {
                return self.expected("NULL");
            }
            return Ok(field.with_nullable(false));
        }
        Ok(field)
    }

    fn decimal(&mut self, name: &str) -> Read<DataType> {
        let (mut precision, mut scale) = (38, 10);
        if self.eat(&Token::LParen) {
            precision = self.integer()?;
            scale = if self.eat(&Token::Comma) {
                self.integer()?
            } else {
                0
            };
            self.expect(&Token::RParen)?;
        }
        let most = if name == "DECIMAL128" { 38 } else { 76 };
        let (Ok(precision), Ok(scale)) = (u8::try_from(precision), i8::try_from(scale)) else {
            return self.wrong(&format!("{name} takes 1 to {most} digits"));
        };
        if !(1..=most).contains(&precision) {
            return self.wrong(&format!("{name} takes 1 to {most} digits, not {precision}"));
        }
        if i16::from(scale.unsigned_abs()) > i16::from(precision) {
            return self.wrong(&format!(
                "the scale of {name}({precision}, {scale}) is greater than its precision"
            ));
        }
        Ok(if precision > 38 || name == "DECIMAL256" {
            DataType::Decimal256(precision, scale)
        } else {
            DataType::Decimal128(precision, scale)
        })
    }

    fn time(&mut self, name: &str) -> Read<DataType> {
        let unit = self.unit()?;
        let with_zone = self.word("WITH");
        if with_zone || self.word("WITHOUT") {
            self.time_zone()?;
        }
        if with_zone {
            return self
                .wrong("TIME WITH TIME ZONE is not supported; use TIMESTAMP WITH TIME ZONE");
        }
        match (name, unit) {
            ("TIME" | "TIME32", Some(unit @ (TimeUnit::Second | TimeUnit::Millisecond))) => {
                Ok(DataType::Time32(unit))
            }
            ("TIME" | "TIME64", Some(unit @ (TimeUnit::Microsecond | TimeUnit::Nanosecond))) => {
                Ok(DataType::Time64(unit))
            }
            ("TIME32", Some(_)) => self.wrong("TIME32 counts seconds (s) or milliseconds (ms)"),
            ("TIME64", Some(_)) => {
                self.wrong("TIME64 counts microseconds (us) or nanoseconds (ns)")
            }
            ("TIME32", None) => Ok(DataType::Time32(TimeUnit::Millisecond)),
            _ => Ok(DataType::Time64(TimeUnit::Nanosecond)),
        }
    }

    /// `TIMESTAMP(6)`, `timestamp[us, tz=UTC]`, and the zone after it.
    fn timestamp(&mut self, name: &str) -> Read<DataType> {
        let mut unit = None;
        let mut zone = (name == "TIMESTAMPTZ").then(|| "UTC".to_string());
        if self.at_unit_in_brackets() {
            self.expect(&Token::LBracket)?;
            unit = Some(self.unit_word()?);
            if self.eat(&Token::Comma) {
                if !self.word("TZ") {
                    return self.expected("tz");
                }
                self.expect(&Token::Eq)?;
                zone = Some(self.zone_up_to_bracket()?);
            }
            self.expect(&Token::RBracket)?;
        } else if let Some(precision) = self.parameter()? {
            unit = Some(self.unit_of(precision)?);
        }
        // The WITH of an option list may follow too.
        let zone_follows = matches!(&self.parser.peek_nth_token_ref(1).token,
            Token::Word(word) if word.value.eq_ignore_ascii_case("TIME"));
        if zone_follows && self.word("WITH") {
            self.time_zone()?;
            zone = Some("UTC".to_string());
            if let Token::SingleQuotedString(given) = &self.parser.peek_token_ref().token {
                zone = Some(given.clone());
                self.parser.advance_token();
            }
        } else if zone_follows && self.word("WITHOUT") {
            self.time_zone()?;
            zone = None;
        }
        if let Some(zone) = &zone
            && zone.parse::<arrow::array::timezone::Tz>().is_err()
        {
            return self.wrong(&format!(
                "'{zone}' is not a time zone; write a name like 'Europe/Berlin' or an offset like '+01:00'"
            ));
        }
        Ok(DataType::Timestamp(
            unit.unwrap_or(TimeUnit::Nanosecond),
            zone.map(Into::into),
        ))
    }

    fn time_zone(&mut self) -> Read<()> {
        if self.word("TIME") && self.word("ZONE") {
            Ok(())
        } else {
            self.expected("TIME ZONE")
        }
    }

    /// All up to a closing bracket, as text: a zone like Europe/Berlin or +01:00.
    fn zone_up_to_bracket(&mut self) -> Read<String> {
        let mut zone = String::new();
        loop {
            let text = match &self.parser.peek_token_ref().token {
                Token::RBracket | Token::EOF | Token::SemiColon => break,
                Token::SingleQuotedString(text) => text.clone(),
                Token::Word(word) => word.value.clone(),
                other => other.to_string(),
            };
            zone.push_str(&text);
            self.parser.advance_token();
        }
        if zone.is_empty() {
            return self.expected("a time zone");
        }
        Ok(zone)
    }

    /// `STRUCT(a INT, b VARCHAR)`, `STRUCT<a INT, b: VARCHAR>`.
    fn structure(&mut self) -> Read<DataType> {
        let fields = self.in_brackets(|reader| {
            let mut fields: Vec<Field> = Vec::new();
            loop {
                if !matches!(reader.parser.peek_token_ref().token, Token::Word(_)) {
                    return reader.expected("the name of a field");
                }
                let name = normalise(reader.parser.parse_identifier()?);
                if fields.iter().any(|field| *field.name() == name) {
                    return reader.wrong(&format!("field '{name}' is named twice"));
                }
                let _ = reader.eat(&Token::Colon);
                fields.push(reader.element(&name)?);
                if reader.closed_ahead || !reader.eat(&Token::Comma) {
                    return Ok(fields);
                }
            }
        })?;
        Ok(DataType::Struct(fields.into()))
    }

    fn map(&mut self) -> Read<DataType> {
        let (key, value) = self.in_brackets(|reader| {
            let key = reader.element("key")?;
            reader.expect(&Token::Comma)?;
            Ok((key, reader.element("value")?))
        })?;
        let entries = DataType::Struct(vec![key.with_nullable(false), value].into());
        Ok(DataType::Map(
            Arc::new(Field::new("entries", entries, false)),
            false,
        ))
    }

    /// What `inner` reads, in `( )` or `< >`.
    fn in_brackets<T>(&mut self, inner: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        let close = self.open(&[Token::LParen, Token::Lt])?;
        let inner = inner(self)?;
        self.close(&close)?;
        Ok(inner)
    }

    /// Takes one of these opening brackets; gives the one that closes it.
    fn open(&mut self, allowed: &[Token]) -> Read<Token> {
        for open in allowed {
            if self.eat(open) {
                return Ok(match open {
                    Token::Lt => Token::Gt,
                    Token::LBracket => Token::RBracket,
                    _ => Token::RParen,
                });
            }
        }
        let allowed: Vec<String> = allowed.iter().map(|token| format!("'{token}'")).collect();
        self.expected(&allowed.join(" or "))
    }

    /// Takes a closing bracket, where the tokens `>>` close two.
    fn close(&mut self, close: &Token) -> Read<()> {
        if *close != Token::Gt {
            return if self.closed_ahead {
                self.wrong("'<' is closed by '>', '(' by ')'")
            } else {
                self.expect(close)
            };
        }
        if self.closed_ahead {
            self.closed_ahead = false;
            return Ok(());
        }
        if self.eat(&Token::ShiftRight) {
            self.closed_ahead = true;
            return Ok(());
        }
        self.expect(close)
    }

    /// The unit after TIME and DURATION: `(6)` or `[us]`.
    fn unit(&mut self) -> Read<Option<TimeUnit>> {
        if self.at_unit_in_brackets() {
            self.expect(&Token::LBracket)?;
            let unit = self.unit_word()?;
            self.expect(&Token::RBracket)?;
            return Ok(Some(unit));
        }
        match self.parameter()? {
            Some(precision) => Ok(Some(self.unit_of(precision)?)),
            None => Ok(None),
        }
    }

    /// Whether `[us` comes next, in distinction from the `[` of a list.
    fn at_unit_in_brackets(&self) -> bool {
        self.parser.peek_token_ref().token == Token::LBracket
            && matches!(self.parser.peek_nth_token_ref(1).token, Token::Word(_))
    }

    fn unit_word(&mut self) -> Read<TimeUnit> {
        for (word, unit) in [
            ("S", TimeUnit::Second),
            ("MS", TimeUnit::Millisecond),
            ("US", TimeUnit::Microsecond),
            ("NS", TimeUnit::Nanosecond),
        ] {
            if self.word(word) {
                return Ok(unit);
            }
        }
        self.expected("s, ms, us or ns")
    }

    fn unit_of(&self, precision: u64) -> Read<TimeUnit> {
        match precision {
            0 => Ok(TimeUnit::Second),
            3 => Ok(TimeUnit::Millisecond),
            6 => Ok(TimeUnit::Microsecond),
            9 => Ok(TimeUnit::Nanosecond),
            other => self.wrong(&format!(
                "the precision of a time is 0, 3, 6 or 9 digits of a second, not {other}"
            )),
        }
    }

    /// `(n)`, if it comes next.
    fn parameter(&mut self) -> Read<Option<u64>> {
        if !self.eat(&Token::LParen) {
            return Ok(None);
        }
        let number = self.parser.parse_literal_uint()?;
        self.expect(&Token::RParen)?;
        Ok(Some(number))
    }

    /// `(n)`, `(n CHARACTERS)` or `(MAX)`, which say nothing to us.
    fn ignored_length(&mut self) -> Read<()> {
        if self.eat(&Token::LParen) {
            if !self.word("MAX") {
                self.parser.parse_literal_uint()?;
                let _ = self.word("CHARACTERS") || self.word("OCTETS");
            }
            self.expect(&Token::RParen)?;
        }
        Ok(())
    }

    /// How many items a list, or bytes a binary, of fixed size has.
    fn length(&mut self) -> Read<i32> {
        match i32::try_from(self.parser.parse_literal_uint()?) {
            Ok(length) if length > 0 => Ok(length),
            _ => self.wrong(&format!("a fixed size is from 1 to {}", i32::MAX)),
        }
    }

    fn integer(&mut self) -> Read<i64> {
        let negative = self.eat(&Token::Minus);
        let number = i64::try_from(self.parser.parse_literal_uint()?).unwrap_or(i64::MAX);
        Ok(if negative { -number } else { number })
    }

    fn word(&mut self, word: &str) -> bool {
        let there = matches!(&self.parser.peek_token_ref().token, Token::Word(there)
            if there.quote_style.is_none() && there.value.eq_ignore_ascii_case(word));
        if there {
            self.parser.advance_token();
        }
        there
    }

    fn eat(&mut self, token: &Token) -> bool {
        self.parser.consume_token(token)
    }

    fn expect(&mut self, token: &Token) -> Read<()> {
        self.parser.expect_token(token)?;
        Ok(())
    }

    fn expected<T>(&self, what: &str) -> Read<T> {
        Ok(self
            .parser
            .expected_ref(what, self.parser.peek_token_ref())?)
    }

    /// The token before this place says something that is not a type.
    fn wrong<T>(&self, message: &str) -> Read<T> {
        Err(Failure::syntax(
            message,
            self.parser.get_current_token().span.start,
        ))
    }
}
