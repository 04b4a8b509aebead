//! URLs that clients may show as links.
//!
//! A client opens a link of a citation when its user follows it, so that a `javascript:` URL would run in the client's origin
//! and a `file:` URL would leave the web. Documents and memories come from imports, other services and other people.

use url::{ParseError, Url};

const SCHEMES: [&str; 3] = ["http", "https", "mailto"];

/// Whether the URL leads to the web or to a mailbox, for every parser: WHATWG's, which skips tabs, line ends and white space
/// around the URL, and those of RFC 3986, which do not. A relative URL is accepted; the client resolves it.
#[must_use]
pub fn is_link(url: &str) -> bool {
    if url.chars().any(char::is_control) {
        return false;
    }
    match Url::parse(url) {
        Ok(url) => SCHEMES.contains(&url.scheme()),
        // A parser that skips a character before it reads a scheme, such as a no-break space, would find one before a colon
        // (RFC 3986, section 4.2).
        Err(ParseError::RelativeUrlWithoutBase) => {
            !url.split(['/', '?', '#', '\\']).next().unwrap_or_default().contains(':')
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_web_and_mail_urls_are_links() {
        for url in [
            "https://example.com/a?b=c#d",
            "HTTP://EXAMPLE.COM",
            " https://example.com/a b.pdf ",
            "https://例子.测试/线性代数",
            "http://127.0.0.1:8080/",
            "mailto:ann@example.com",
            "/notes/1",
            "//example.com/x",
            "notes/chapter-1.md",
            "?page=2",
            "#10:30",
            "",
        ] {
            assert!(is_link(url), "{url:?}");
        }
        for url in [
            "javascript:alert(1)",
            "JaVaScRiPt:alert(1)",
            " \u{1}javascript:alert(1)",
            "java\tscript:alert(1)",
            "java\nscript:alert(1)",
            "javascript\r\n:alert(1)",
            "\u{a0}javascript:alert(1)",
            "\u{feff}javascript:alert(1)",
            "java\u{200b}script:alert(1)",
            "javascript://example.com/%0aalert(1)",
            "data:text/html,<script>alert(1)</script>",
            "vbscript:msgbox(1)",
            "file:///etc/passwd",
            "blob:https://example.com/1",
            "view-source:https://example.com",
            "intent://scan/#Intent;scheme=zxing;end",
            "ftp://example.com/",
            "tel:+1234",
            "C:\\notes.txt",
            "localhost:8080/x",
            "https://",
            "https://example.com/\u{7f}",
            "https://exa\tmple.com/",
        ] {
            assert!(!is_link(url), "{url:?}");
        }
    }

    proptest! {
        #[test]
        fn no_link_has_another_scheme_after_trimming(prefix in r"\PC{0,3}", scheme in "(?i)javascript|data|vbscript|file") {
            let url = format!("{prefix}{scheme}:alert(1)");
            let is_a_path = prefix.contains(['/', '?', '#', '\\']);
            prop_assert!(is_a_path || !is_link(&url), "{url:?}");
        }
    }
}
