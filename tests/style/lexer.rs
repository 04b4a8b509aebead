//! A lexer for Rust that is exact enough for `use` declarations and paths: it drops comments and literals.

use std::iter::Peekable;
use std::str::Chars;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    Ident(String),
    /// `::`
    Path,
    Punct(char),
}

impl Token {
    pub fn ident(&self) -> Option<&str> {
        match self {
            Self::Ident(name) => Some(name),
            _ => None,
        }
    }
}

pub fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => while chars.next().is_some_and(|c| c != '\n') {},
            '/' if chars.peek() == Some(&'*') => skip_block_comment(&mut chars),
            '"' => skip_string(&mut chars),
            '\'' => skip_char_or_lifetime(&mut chars),
            ':' if chars.peek() == Some(&':') => {
                chars.next();
                tokens.push(Token::Path);
            }
            c if c.is_alphabetic() || c == '_' => {
                let mut name = String::from(c);
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                match (name.as_str(), chars.peek()) {
                    ("r" | "br" | "cr", Some('"' | '#')) => {
                        if let Some(raw_identifier) = skip_raw_string(&mut chars) {
                            tokens.push(Token::Ident(raw_identifier));
                        }
                    }
                    ("b" | "c", Some('"')) => {
                        chars.next();
                        skip_string(&mut chars);
                    }
                    ("b", Some('\'')) => {
                        chars.next();
                        skip_char_or_lifetime(&mut chars);
                    }
                    _ => tokens.push(Token::Ident(name)),
                }
            }
            c if c.is_whitespace() => {}
            c => tokens.push(Token::Punct(c)),
        }
    }
    tokens
}

fn skip_block_comment(chars: &mut Peekable<Chars<'_>>) {
    let mut depth = 0;
    let mut last = '/';
    for c in chars.by_ref() {
        match (last, c) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                last = c;
                continue;
            }
        }
        // `/*/` opens a comment and closes none.
        last = ' ';
        if depth == 0 {
            return;
        }
    }
}

fn skip_string(chars: &mut Peekable<Chars<'_>>) {
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '"' => return,
            _ => {}
        }
    }
}

/// Skips a raw string, or returns the name of a raw identifier.
fn skip_raw_string(chars: &mut Peekable<Chars<'_>>) -> Option<String> {
    let mut hashes = 0;
    while chars.next_if_eq(&'#').is_some() {
        hashes += 1;
    }
    if chars.next_if_eq(&'"').is_none() {
        return Some(std::iter::from_fn(|| chars.next_if(|c| c.is_alphanumeric() || *c == '_')).collect());
    }
    while let Some(c) = chars.next() {
        if c == '"' && (0..hashes).all(|_| chars.next_if_eq(&'#').is_some()) {
            return None;
        }
    }
    None
}

fn skip_char_or_lifetime(chars: &mut Peekable<Chars<'_>>) {
    match chars.next() {
        Some('\\') => {
            chars.next();
            while chars.next().is_some_and(|c| c != '\'') {}
        }
        Some(_) => drop(chars.next_if_eq(&'\'')),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lexer_drops_comments_and_literals() {
        let source = r####"a /* b /* c */ */ // d
            "e\"f" 'g' '\'' 'h r#"i"j"# b'k' br"l" r#type::m '\u{1F}'"####;
        let names: Vec<_> = tokens(source).into_iter().filter_map(|token| token.ident().map(str::to_owned)).collect();
        assert_eq!(names, ["a", "type", "m"]);
    }
}
