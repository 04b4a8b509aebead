use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn joined_terms(text: &str) -> String {
    terms(text).join(" ")
}

#[test]
fn english_is_stemmed_without_function_words() {
    assert_eq!(joined_terms("The dogs were running in the parks"), "dog run park");
    assert_eq!(joined_terms("Where did Anna's children go? They went camping."), "anna child go go camp");
    assert_eq!(joined_terms("I don’t think it's Anna’s, we'll see"), "think anna see");
    assert_eq!(joined_terms("O'Brien met me in May"), "obrien o brien meet may");
}

#[test]
fn text_of_function_words_keeps_them() {
    assert_eq!(joined_terms("to be or not to be"), "to be or not to be");
    assert_eq!(joined_terms("Who is it?"), "who is it");
    assert_eq!(joined_terms("I don't"), "i dont");
    assert_eq!(joined_terms("who is Anna?"), "anna");
}

#[test]
fn unspaced_script_becomes_character_pairs() {
    assert_eq!(joined_terms("我喜欢猫"), "我喜 喜欢 欢猫");
    assert_eq!(joined_terms("猫"), "猫");
    assert_eq!(joined_terms("你好，世界！"), "你好 世界");
    assert_eq!(joined_terms("高数2024"), "高数 2024");
    assert_eq!(joined_terms("用GPT-4写代码"), "用 gpt4 gpt 4 写代 代码");
    assert_eq!(joined_terms("カタカナ ひらがな"), "カタ タカ カナ ひら らが がな");
    assert_eq!(joined_terms("ｶﾞｷﾞ"), "ガギ", "half-width");
    assert_eq!(joined_terms("한국어를"), "한국 국어 어를");
    assert_eq!(joined_terms("𠮷野家"), "𠮷野 野家", "beyond the basic plane");
}

#[test]
fn spellings_of_a_word_share_a_term() {
    for spellings in [
        &["GPT-4", "GPT4", "gpt-4", "ＧＰＴ－４", "gpt‑4"][..],
        &["snake_case_name", "snakeCaseName", "SnakeCaseName", "snake-case-name", "snakecasename"],
        &["node.js", "Node.JS", "NodeJS", "nodejs"],
        &["e-mail", "email", "E-Mail"],
        &["1,000", "1000", "1'000"],
        &["résumé", "resume", "RÉSUMÉ", "re\u{301}sume\u{301}"],
        &["Straße", "STRASSE", "strasse"],
        &["ΣΊΣΥΦΟΣ", "Σίσυφος", "σισυφοσ"],
        &["don't", "don’t", "dont"],
        &["May 8", "May 8th"],
        &["co\u{AD}operate", "cooperate"],
    ] {
        for spelling in spellings {
            assert_eq!(terms(spelling)[0], terms(spellings[0])[0], "{spelling}");
        }
    }
}

#[test]
fn compound_has_terms_of_whole_and_parts() {
    assert_eq!(joined_terms("gpt 4"), "gpt 4");
    assert_eq!(joined_terms("snake_case_name"), "snakecasenam snake case name");
    assert_eq!(joined_terms("HTTPServer"), "httpserver http server");
    assert_eq!(joined_terms("anna@example.com"), "annaexamplecom anna exampl com");
    assert_eq!(joined_terms("https://example.com/a-b?x=1"), "https examplecom exampl com ab b x 1");
    assert_eq!(joined_terms("2023-05-08"), "2023 05 08");
    assert_eq!(joined_terms("TVs and SUVs"), "tvs suv");
}

#[test]
fn signs_of_names_and_separators_of_numbers_stay() {
    assert_eq!(joined_terms("C++, C# and F#!"), "c++ c# f#");
    assert_eq!(joined_terms("C++17 用C++的人"), "c++ 17 用 c++ 的人");
    assert_eq!(joined_terms(".NET, ASP.NET"), ".net net aspnet asp net");
    assert_eq!(joined_terms("Notepad++"), "notepad++ notepad");
    assert_eq!(joined_terms("and ...then? a+b #5 C +"), "b 5 c");
    assert_eq!(joined_terms("3.14, 1,000.50 and 1.2.3"), "3.14 1000.50 1 2 3");
    assert_eq!(joined_terms("1,2 in the 1990s"), "1 2 1990");
}

#[test]
fn signs_alone_have_no_terms() {
    for text in ["", " \n", "👍🏽", "?!…", "+-#.@&_", "。，", "\u{301}"] {
        assert!(terms(text).is_empty(), "{text}");
    }
}

#[test]
fn long_term_is_truncated_at_a_character() {
    assert_eq!(terms(&"ab1".repeat(100)).iter().map(String::len).max(), Some(MAX_TERM_BYTES));
    assert_eq!(terms(&"é".repeat(100)), ["e".repeat(64)]);
    assert_eq!(terms(&"ж\u{488}".repeat(100))[0].len(), 64);
    assert_eq!(terms(&"高".repeat(10_000)).len(), 9_999);
}

#[test]
fn terms_take_linear_time() {
    let started = Instant::now();
    for unit in ["a", "aB", "a1", "a.", "1,", "1.", "a'", "a-", "a+", "+", "高", "\u{301}", "🇩🇪", "\u{200D}", "ab "]
    {
        assert!(terms(&unit.repeat(300_000 / unit.len())).len() <= 600_000);
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

proptest! {
    #[test]
    fn terms_are_bounded_and_normalization_invariant(text in "(\\PC|[a-cA-C1 .,'’_+#-]|[好的アガ한]){0,60}") {
        let found = terms(&text);
        prop_assert!(found.iter().all(|term| !term.is_empty() && term.len() <= MAX_TERM_BYTES));
        prop_assert_eq!(&terms(&text.nfkc().collect::<String>()), &found);
        prop_assert_eq!(&terms(&text.nfd().collect::<String>()), &found);
    }

    #[test]
    fn terms_are_case_insensitive(text in "(\\PC|[a-c1 .'_+#ßςσİıǅ-]|[好的]){0,60}") {
        // The iota below a Greek letter is dropped as an accent, but becomes a letter in upper case.
        let text: String = text.nfkc().filter(|c| !c.to_string().nfkd().any(|part| part == '\u{345}')).collect();
        prop_assert_eq!(terms(&text.to_uppercase()), terms(&text.to_lowercase()));
    }

    #[test]
    fn word_finds_its_text(
        words in prop::collection::vec("[b-z][a-z]{2,9}|[0-9]{1,6}|[一-龥]{2}", 1..9),
        at in 0_usize..9,
    ) {
        let text = terms(&words.join(", "));
        let word = &words[at % words.len()];
        prop_assert!(english::is_function_word(word) || terms(word).iter().all(|term| text.contains(term)));
    }
}
