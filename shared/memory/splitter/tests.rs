use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn chunks(content: &str) -> Vec<(String, &str)> {
    split(content).into_iter().map(|chunk| (chunk.section, chunk.text)).collect()
}

fn without_space(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

fn assert_lossless_and_bounded(content: &str) {
    let chunks = split(content);
    let all: String = chunks.iter().map(|chunk| chunk.text).collect();
    assert_eq!(without_space(&all), without_space(content.trim_start_matches('\u{FEFF}')));
    for chunk in chunks {
        assert!(!chunk.text.trim().is_empty());
        assert!(weight(chunk.text) <= MAX_WEIGHT, "{}", chunk.text.len());
    }
}

#[test]
fn headings_open_sections_and_keep_their_text() {
    let content = "Intro.\n\n# Guide #\n\n## Setup\nInstall it.\n\nRun it.\n\n## Use\n\nSo.\n# 附录\n完。\n";
    let expected = [
        ("", "Intro."),
        ("Guide > Setup", "# Guide #\n\n## Setup\nInstall it.\n\nRun it."),
        ("Guide > Use", "## Use\n\nSo."),
        ("附录", "# 附录\n完。"),
    ];
    assert_eq!(chunks(content), expected.map(|(section, text)| (section.to_owned(), text)));
    let crlf = content.replace('\n', "\r\n");
    let sections: Vec<String> = split(&crlf).into_iter().map(|chunk| chunk.section).collect();
    assert_eq!(sections, ["", "Guide > Setup", "Guide > Use", "附录"]);
}

#[test]
fn setext_heading_differs_from_rule_list_and_table() {
    let sections = |content| split(content).into_iter().map(|chunk| chunk.section).collect::<Vec<_>>();
    assert_eq!(sections("Title\n=====\ntext\n\nPart\n---\ntext"), ["Title", "Title > Part"]);
    for content in [
        "one line\nanother\n---\n",
        "- item\n---\n",
        "text\n\n---\ntext",
        "a | b\n--- | ---\n",
        "#tag #9\n",
        "    # code\n",
    ] {
        assert_eq!(sections(content), [""], "{content}");
    }
    assert_eq!(sections(&format!("{}\n---\n", "word ".repeat(40))), [""]);
}

#[test]
fn fenced_code_stays_whole_and_has_no_headings() {
    let code = format!("```sh\n# not a heading\n\n{}```", "make all\n".repeat(150));
    let content = format!("# Build\n\nBefore.\n\n{code}\n\nAfter.\n");
    let found = chunks(&content);
    assert_eq!(found.iter().map(|(_, text)| *text).collect::<Vec<_>>(), ["# Build\n\nBefore.", &code, "After."]);
    assert!(found.iter().all(|(section, _)| section == "Build"));
    let long = format!("~~~\n{}~~~\n# B\n", "let x = 1;\n".repeat(400));
    let found = chunks(&long);
    assert!(found[..found.len() - 1].iter().all(|(section, text)| section.is_empty() && text.ends_with([';', '~'])));
    assert_eq!(found.last().map(|(section, _)| section.as_str()), Some("B"));
    assert_eq!(chunks("```\n# never closed\n").len(), 1);
}

#[test]
fn paragraphs_merge_up_to_target_weight() {
    let content = format!("{}\n\n", "word ".repeat(60).trim_end()).repeat(7);
    let sizes: Vec<usize> = split(&content).iter().map(|chunk| chunk.text.len()).collect();
    assert_eq!(sizes, [901, 901, 299]);
    let sizes: Vec<usize> =
        split(&"天气很好。\n\n".repeat(200)).iter().map(|chunk| chunk.text.chars().count()).collect();
    assert!(sizes.iter().all(|size| (2..=600).contains(size)), "{sizes:?}");
}

#[test]
fn long_paragraph_splits_at_sentences() {
    let english = "Dr. No paid 3.14 dollars to example.com, e.g. for J. Doe. \"Was it worth it?\" Yes! ".repeat(40);
    assert!(split(&english).len() > 2);
    for chunk in split(&english) {
        assert!(["Doe.", "it?\"", "Yes!"].iter().any(|end| chunk.text.ends_with(end)), "{}", chunk.text);
    }
    let chinese = "他说：“今天天气很好！”我们去公园吧……然后回家；再吃饭。".repeat(60);
    for chunk in split(&chinese) {
        assert!(chunk.text.ends_with(['”', '…', '；', '。']) && chunk.text.chars().count() <= 500, "{}", chunk.text);
    }
    let list = "- an item without a full stop\n".repeat(100);
    assert!(split(&list).iter().all(|chunk| chunk.text.starts_with("- ") && chunk.text.ends_with("stop")));
}

#[test]
fn endless_sentence_splits_at_spaces_then_graphemes() {
    let words = "word ".repeat(1_000);
    assert!(split(&words).iter().all(|chunk| chunk.text.starts_with("word") && chunk.text.ends_with("word")));
    let family = "👨‍👩‍👧‍👦";
    let families = family.repeat(300);
    assert!(split(&families).len() > 3);
    assert!(split(&families).iter().all(|chunk| chunk.text.replace(family, "").is_empty()));
    assert_lossless_and_bounded(&format!("e{}", "\u{301}".repeat(5_000)));
}

#[test]
fn blank_document_has_no_chunks() {
    for content in ["", "\n\n", " \t\r\n", "\u{FEFF}\n", "\u{3000}"] {
        assert_eq!(chunks(content), [], "{content:?}");
    }
}

#[test]
fn split_takes_linear_time() {
    let started = Instant::now();
    for unit in
        ["a", "#", "# \n", "# a\n", "\n", " ", "```\n", "a.", ". ", "a. b", "a\n---\n", "🇩🇪", "。", "\u{301}", "- \n"]
    {
        assert_lossless_and_bounded(&unit.repeat(300_000 / unit.len()));
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

proptest! {
    #[test]
    fn split_is_lossless_and_bounded(
        parts in prop::collection::vec(
            ("\\PC{0,20}|[a-z 好。.!?\"#`=\r\n\t-]{0,40}|#{1,7} [a-z]{0,9}\n|```\n|\n\n", 1_usize..80),
            0..30,
        )
    ) {
        assert_lossless_and_bounded(&parts.into_iter().map(|(part, times)| part.repeat(times)).collect::<String>());
    }
}
