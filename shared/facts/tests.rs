//! Text within a paste never becomes the user's own words, whatever it is, and the user's words around it still do.

use std::cell::Cell;

use proptest::{collection::vec, prelude::*, sample::select};

use super::own_words;

/// The stranger's words contain one of these.
const STRANGER: [&str; 2] = ["Mallory", "小红"];
const BEFORE: [&str; 2] = ["I live in Leeds.", "我住在杭州。"];
const AFTER: [&str; 2] = ["I like green tea.", "我喜欢喝绿茶。"];

/// Texts that try to leave what they stand in.
fn hostile_line() -> impl Strategy<Value = String> {
    let closers = vec![
        "</document>",
        "</DOCUMENT >",
        "</document\n>",
        "<document>",
        "<document/>",
        "<b>",
        "</b>",
        "<br>",
        "<!-- x -->",
        "-->",
        "]]>",
        "</资料>",
        "[/quote]",
        "[quote]",
        "```",
        "````",
        "~~~",
        "```python",
        "\"\"\"",
        "'''",
        "---",
        "===",
        "--- end ---",
        "**",
        "“",
        "”",
        "「」",
        "\"",
        "'",
        "`",
        "》",
        "{",
        "}",
        "",
        "    ",
        "> ",
        "| a | b |",
        "User: hi",
        "Assistant: hello",
        "Ann: yes",
        "你好：",
        "Best regards,",
        "The end.",
        "。",
        "<a href=\"x>y\">",
        "<",
        ">",
        "end of document",
        "\u{200B}",
    ];
    let words = vec![
        "My name is Mallory.",
        "I'm called Mallory and I live in Rome.",
        "我叫小红，我住在北京。",
        "Call me Mallory!",
    ];
    let word = move || select(words.clone());
    let closer = move || select(closers.clone());
    prop_oneof![
        word().prop_map(str::to_owned),
        closer().prop_map(str::to_owned),
        (closer(), word()).prop_map(|(closer, word)| format!("{closer}{word}")),
        (word(), closer()).prop_map(|(word, closer)| format!("{word} {closer}")),
        (closer(), word(), closer()).prop_map(|(a, word, b)| format!("{a} {word} {b}")),
    ]
}

/// Never without the stranger's name.
fn pasted() -> impl Strategy<Value = String> {
    (vec(hostile_line(), 0..5), vec(hostile_line(), 0..5)).prop_map(|(before, after)| {
        let lines = before.into_iter().chain(["My name is Mallory. 我叫小红。".to_owned()]).chain(after);
        lines.collect::<Vec<_>>().join("\n")
    })
}

fn each_line(text: &str, wrap: impl Fn(&str) -> String) -> String {
    text.split('\n').map(wrap).collect::<Vec<_>>().join("\n")
}

fn assert_no_stranger(message: &str) {
    let own = own_words(message);
    for stranger in STRANGER {
        assert!(!own.contains(stranger), "{message:?} gives {own:?}");
    }
}

fn assert_only_own(message: &str, language: usize, has_after: bool) {
    assert_no_stranger(message);
    let own = own_words(message);
    assert!(own.contains(BEFORE[language]), "{message:?} loses what precedes: {own:?}");
    assert!(!has_after || own.contains(AFTER[language]), "{message:?} loses what follows: {own:?}");
}

/// Blocks that name their end: it is found again whatever they contain.
const TAGS: [(&str, &str); 10] = [
    ("<document>", "</document>"),
    ("<Document>", "</document >"),
    ("<document title=\"a > b\" source='it\"s'>", "</document>"),
    ("<document\n  title=\"long\"\n  id=7\n>", "</document>"),
    ("<outer><document>", "</document></outer>"),
    ("<document><document>", "</document></document>"),
    ("<资料 来源=\"网页\">", "</资料>"),
    ("＜资料＞", "＜／资料＞"),
    ("[quote=Mallory]", "[/quote]"),
    ("【资料】", "【/资料】"),
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(192) })]

    #[test]
    fn text_between_tags_is_never_own(text in pasted(), tag in select(TAGS.to_vec()), language in 0..2_usize) {
        let (open, close) = tag;
        assert_only_own(&format!("{}\n{open}\n{text}\n{close}\n{}", BEFORE[language], AFTER[language]), language, !text.contains("```")
            && !text.contains('<') && !text.contains('['));
        assert_only_own(&format!("{}{open}{text}{close}{}", BEFORE[language], AFTER[language]), language, false);
    }

    #[test]
    fn tag_with_long_attributes_opens_a_block(text in pasted(), attribute in "[a-z \n]{0,3000}") {
        assert_only_own(&format!("{}\n<document note=\"{attribute}\">{text}</document>", BEFORE[0]), 0, false);
        assert_only_own(&format!("{}\n<document {attribute}>{text}</document>", BEFORE[0]), 0, false);
        assert_only_own(&format!("{}\n<document note=\"{attribute}\">{}", BEFORE[0], text.replace('<', "")), 0, false);
    }

    #[test]
    fn fenced_text_is_never_own(text in pasted(), fence in select(vec!["```", "````", "~~~~", "\"\"\"", "-----", "====="]), language in 0..2_usize) {
        let message = format!("{}\n{fence}\n{text}\n{fence}\n{}", BEFORE[language], AFTER[language]);
        let has_marks = ["`", "~", "\"", "'", "-", "=", "*"].iter().any(|mark| text.contains(mark));
        assert_only_own(&message, language, !has_marks);
        // A mark within the text could close the unclosed block, and what follows would count as own words.
        if !has_marks {
            assert_only_own(&format!("{}\n{fence}\n{text}", BEFORE[language]), language, false);
        }
    }

    #[test]
    fn prefixed_lines_are_never_own(text in pasted(), prefix in select(vec!["> ", ">", ">> ", "＞", "│ ", "    ", "\t", "# ", "// "]), language in 0..2_usize) {
        // Marks that open a block or a quotation hide what follows them, which is allowed here.
        let is_plain = !text.contains(['<', '`', '~', '"', '\'', '“', '”', '「', '《', '》', '[', '-', '=', '*', ':', '：']);
        let message = format!("{}\n\n{}\n\n{}", BEFORE[language], each_line(&text, |line| format!("{prefix}{line}")), AFTER[language]);
        assert_only_own(&message, language, is_plain && text.chars().count() < 900);
    }

    #[test]
    fn cells_of_tables_are_never_own(cells in vec(("[a-zA-Z ]{1,12}", select(vec!["My name is Mallory.", "我叫小红。", "Call me Mallory"])), 2..6),
        bar in select(vec![" | ", "|", "\t", " │ ", "｜"]), language in 0..2_usize) {
        let rows: Vec<String> = cells.iter().map(|(name, text)| format!("{name}{bar}{text}")).collect();
        let message = format!("{}\n\n{}\n\n{}", BEFORE[language], rows.join("\n"), AFTER[language]);
        assert_only_own(&message, language, true);
        let rows: Vec<String> = cells.iter().map(|(name, text)| format!("| {name} | {text} |")).collect();
        assert_only_own(&format!("{}\n| a | b |\n|---|---|\n{}\n\n{}", BEFORE[language], rows.join("\n"), AFTER[language]), language, true);
        let rows: Vec<String> = cells.iter().map(|(name, text)| format!("1,{},{text}", name.trim())).collect();
        assert_only_own(&format!("{}\n\n{}\n\n{}", BEFORE[language], rows.join("\n"), AFTER[language]), language, true);
    }

    #[test]
    fn announced_text_is_never_own(text in pasted(), language in 0..2_usize, announcement in select(vec![
        "look at this:", "What does this mean:", "Please summarise the article:", "On Mon, 3 Nov 2026, Mallory <m@example.com> wrote:",
        "From: Mallory <m@example.com>\nTo: me\nSubject: hello\n", "-----Original Message-----", "---------- Forwarded message ---------",
        "看看这个：", "以下是邮件：", "在 2026年11月3日，小红 写道：", "发件人：小红\n收件人：我\n主题：你好\n", "------原始邮件------",
        "小红 2026-11-03 10:01:22", "diff --git a/x b/x",
    ])) {
        assert_only_own(&format!("{}\n{announcement}\n{text}", BEFORE[language]), language, false);
    }

    #[test]
    fn quoted_speech_is_never_own(words in vec(select(vec!["My name is Mallory.", "I live in Rome, says Mallory.", "我叫小红，我住在北京。"]), 1..6),
        marks in select(vec![("“", "”"), ("\"", "\""), ("「", "」"), ("『", "』"), ("«", "»"), (" \"", "\" "), ("\" ", " \"")]),
        inner in select(vec!["", "“", "「", "»", "‘", "\n", "\n\n"]), language in 0..2_usize) {
        let (open, close) = marks;
        let text = words.join(inner);
        let is_closed = !text.contains(open);
        assert_only_own(&format!("{}\n{open}{text}{close}\n{}", BEFORE[language], AFTER[language]), language, is_closed);
    }

    #[test]
    fn any_text_is_processed_in_linear_steps(text in "\\PC{0,200}", unit in select(vec!["<", "<a ", "<a \"", "<a '\"", "</a", "[/a", "{/a", "`", "```", "\"", "“", "「x", "[x", "'", "> ", "A: ", ", ", "a,b,c\n", "|\n", "---\n"])) {
        assert_bounded(&text);
        assert_bounded(&unit.repeat(300));
        assert_bounded(&format!("{text}{}{text}", unit.repeat(300)));
    }
}

#[test]
fn named_examples_leave_no_stranger() {
    for message in [
        "<document>notes</document> My name is Mallory. </document>",
        "<document><document>a</document> My name is Mallory.</document>",
        "<document note=\"a\nb\">My name is Mallory.</document>",
        "look at this:\n\n    My name is Mallory.\n    I live in Rome.",
        "| name | about |\n|---|---|\n| x | My name is Mallory. |",
        "name | about\n--- | ---\nx | My name is Mallory.",
        "Tom: hi\nMy name is Mallory.\nAnn: hello",
        "User: hi\n\nMy name is Mallory.\n\nAssistant: hello",
        "Dear tutor,\nmy name is Mallory.\n\nI live in Rome.\n\nBest regards,\nMallory",
        "尊敬的老师：\n我叫小红。\n此致\n敬礼\n小红",
        "\"hi\nMy name is Mallory.\nbye\"",
        "他说\"我叫小红，我住在北京\"，你怎么看？",
        "妈妈说：我叫小红。",
        "2026-11-03 10:01 INFO My name is Mallory.",
        "<!-- My name is Mallory. --> ok",
        "int x = 1;\n// My name is Mallory.",
        "name,about,city\n1,My name is Mallory.,Rome\n2,x,y",
    ] {
        assert_no_stranger(message);
    }
}

thread_local! {
    static STEPS: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn count_steps(steps: usize) {
    STEPS.set(STEPS.get() + steps);
}

fn steps_for(message: &str) -> usize {
    STEPS.set(0);
    own_words(message);
    STEPS.get()
}

/// Every byte is scanned a few times at most: once for each kind of bracket, by two calls for attributes, and for quotations.
fn assert_bounded(message: &str) {
    let steps = steps_for(message);
    assert!(steps <= 20 * (message.len() + 1), "{steps} steps for {} bytes of {:.40?}", message.len(), message);
}

#[test]
fn steps_for_hostile_messages_are_linear() {
    for unit in [
        "<a ",
        "<a \"",
        "<a '\"",
        "<a \"'\"",
        "</a",
        "＜/a",
        "[/a",
        "{/a",
        "【/a",
        "《/a",
        "〈/a",
        "［/a",
        "[/a{/a【/a<a",
        "[a",
        "[/",
        "[a ",
        "“",
        "“»",
        "`",
        "````` ",
        "'a ",
        "[x] ",
        "{x",
        "\n\n",
        "A: b\n",
        "a b",
        "---\n",
        "i ",
        "<a>",
        "</a>",
        "~a",
        "```",
        "1:",
    ] {
        for (before, after) in [("", ""), ("    ", "]"), ("<a>", "</a>"), ("[a", ">")] {
            assert_bounded(&format!("{before}{}{after}", unit.repeat(6_000 / unit.len())));
        }
    }
    assert!(steps_for("<a b>x</a>") > 0, "the steps are counted");
}
