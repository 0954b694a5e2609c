//! Words of a Dockerfile instruction: quotes, backslashes and variables.

use std::iter::Peekable;
use std::str::Chars;

/// Why a line cannot be split into words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// A quotation mark has no partner.
    #[error("a quotation mark is not closed")]
    Unclosed,
    /// `${` without a plain name and `}` behind it.
    #[error("write $NAME or ${{NAME}}; defaults and patterns are not known here")]
    Variable,
}

/// Splits `text`; variables come from `environment`, which holds `NAME=VALUE`. An unknown one is empty.
pub(super) fn split(text: &str, environment: &[String]) -> Result<Vec<String>, WordError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        match c {
            '\'' => single_quoted(&mut chars, word)?,
            '"' => double_quoted(&mut chars, environment, word)?,
            '\\' => word.extend(chars.next()),
            '$' => variable(&mut chars, environment, word)?,
            c => word.push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn single_quoted(chars: &mut Peekable<Chars<'_>>, word: &mut String) -> Result<(), WordError> {
    loop {
        match chars.next().ok_or(WordError::Unclosed)? {
            '\'' => return Ok(()),
            c => word.push(c),
        }
    }
}

fn double_quoted(
    chars: &mut Peekable<Chars<'_>>,
    environment: &[String],
    word: &mut String,
) -> Result<(), WordError> {
    loop {
        match chars.next().ok_or(WordError::Unclosed)? {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or(WordError::Unclosed)? {
                c @ ('"' | '\\' | '$') => word.push(c),
                c => word.extend(['\\', c]),
            },
            '$' => variable(chars, environment, word)?,
            c => word.push(c),
        }
    }
}

/// What stands behind a `$`.
fn variable(
    chars: &mut Peekable<Chars<'_>>,
    environment: &[String],
    word: &mut String,
) -> Result<(), WordError> {
    let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
    let braced = chars.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = chars.next_if(is_name) {
        name.push(c);
    }
    if braced && (name.is_empty() || chars.next() != Some('}')) {
        return Err(WordError::Variable);
    }
    if name.is_empty() {
        word.push('$');
        return Ok(());
    }
    let value = environment.iter().find_map(|entry| entry.strip_prefix(&name)?.strip_prefix('='));
    word.push_str(value.unwrap_or_default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_and_variables_are_understood() {
        let environment = ["A=1".to_owned(), "AB=2 3".to_owned()];
        let split = |text: &str| split(text, &environment).unwrap();
        assert_eq!(split(r#"a "b c"d 'e "$A"' \  """#), ["a", "b cd", r#"e "$A""#, " ", ""]);
        assert_eq!(split(r#"$A ${AB}x "$AB" \$A "\$A" $ $NONE"#), ["1", "2 3x", "2 3", "$A", "$A", "$", ""]);
        assert!(split("  ").is_empty());
    }

    #[test]
    fn what_is_not_closed_is_refused() {
        for text in ["'a", "\"a", "\"a\\", "${A", "${}", "${A:-b}"] {
            assert!(split(text, &[]).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_split_or_refused_without_panic(text in "\\PC{0,60}") {
            let _ = split(&text, &["A=b".to_owned()]);
        }
    }
}
