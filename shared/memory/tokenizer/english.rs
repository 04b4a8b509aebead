use std::{borrow::Cow, sync::LazyLock};

use rust_stemmers::{Algorithm, Stemmer};

/// Sorted; most are of the NLTK stop word list. Not in it: "may" (the month), "us" (the country), and "before",
/// "after", "between", "during", "against", "above", "below", "under", which distinguish memories.
#[rustfmt::skip]
const FUNCTION_WORDS: &[&str] = &[
    "a", "about", "again", "aint", "all", "also", "am", "an", "and", "any", "are", "arent", "as", "at", "be",
    "because", "been", "being", "both", "but", "by", "can", "cannot", "cant", "could", "couldnt", "did", "didnt",
    "do", "does", "doesnt", "doing", "done", "dont", "each", "else", "few", "for", "from", "further", "had",
    "hadnt", "has", "hasnt", "have", "havent", "having", "he", "her", "here", "hers", "herself", "hes", "him",
    "himself", "his", "how", "hows", "i", "if", "im", "in", "into", "is", "isnt", "it", "its", "itself", "ive",
    "just", "lets", "many", "me", "might", "mightnt", "more", "most", "much", "must", "mustnt", "my", "myself",
    "neednt", "no", "nor", "not", "now", "of", "off", "on", "once", "only", "or", "other", "our", "ours",
    "ourselves", "out", "over", "own", "same", "shall", "shant", "she", "shes", "should", "shouldnt", "so", "some",
    "such", "than", "that", "thats", "the", "their", "theirs", "them", "themselves", "then", "there", "theres",
    "these", "they", "theyll", "theyre", "theyve", "this", "those", "through", "to", "too", "until", "up", "very",
    "was", "wasnt", "we", "were", "werent", "weve", "what", "whats", "when", "where", "wheres", "which", "while",
    "who", "whom", "whos", "whose", "why", "will", "with", "wont", "would", "wouldnt", "you", "youll", "your",
    "youre", "yours", "yourself", "yourselves", "youve",
];

/// Sorted. A suffix stemmer does not relate them: "where did I go" would not find "I went". Forms that are more often
/// another word are not in the list: "felt", "found", "ground", "left", "lay", "saw", "rose".
#[rustfmt::skip]
const IRREGULAR_FORMS: &[(&str, &str)] = &[
    ("ate", "eat"), ("became", "become"), ("began", "begin"), ("begun", "begin"), ("bitten", "bite"),
    ("blew", "blow"), ("bought", "buy"), ("broke", "break"), ("broken", "break"), ("brought", "bring"),
    ("built", "build"), ("came", "come"), ("caught", "catch"), ("children", "child"), ("chose", "choose"),
    ("chosen", "choose"), ("dealt", "deal"), ("drank", "drink"), ("drawn", "draw"), ("dreamt", "dream"),
    ("drew", "draw"), ("driven", "drive"), ("drove", "drive"), ("eaten", "eat"), ("fallen", "fall"), ("fed", "feed"),
    ("feet", "foot"), ("fell", "fall"), ("flew", "fly"), ("flown", "fly"), ("forgave", "forgive"),
    ("forgot", "forget"), ("forgotten", "forget"), ("fought", "fight"), ("froze", "freeze"), ("frozen", "freeze"),
    ("gave", "give"), ("given", "give"), ("goes", "go"), ("gone", "go"), ("got", "get"), ("gotten", "get"),
    ("grew", "grow"), ("grown", "grow"), ("heard", "hear"), ("held", "hold"), ("hid", "hide"), ("hidden", "hide"),
    ("hung", "hang"), ("kept", "keep"), ("knew", "know"), ("known", "know"), ("learnt", "learn"), ("led", "lead"),
    ("lent", "lend"), ("lost", "lose"), ("made", "make"), ("meant", "mean"), ("men", "man"), ("met", "meet"),
    ("mice", "mouse"), ("paid", "pay"), ("people", "person"), ("ran", "run"), ("rang", "ring"), ("ridden", "ride"),
    ("rode", "ride"), ("said", "say"), ("sang", "sing"), ("sat", "sit"), ("seen", "see"), ("sent", "send"),
    ("shook", "shake"), ("shown", "show"), ("slept", "sleep"), ("sold", "sell"), ("spent", "spend"),
    ("spoke", "speak"), ("spoken", "speak"), ("stole", "steal"), ("stolen", "steal"), ("stood", "stand"),
    ("stuck", "stick"), ("sung", "sing"), ("swam", "swim"), ("swore", "swear"), ("taken", "take"),
    ("taught", "teach"), ("teeth", "tooth"), ("thought", "think"), ("threw", "throw"), ("thrown", "throw"),
    ("told", "tell"), ("took", "take"), ("tore", "tear"), ("torn", "tear"), ("understood", "understand"),
    ("went", "go"), ("wives", "wife"), ("woke", "wake"), ("woken", "wake"), ("women", "woman"), ("won", "win"),
    ("wore", "wear"), ("worn", "wear"), ("written", "write"), ("wrote", "write"),
];

static STEMMER: LazyLock<Stemmer> = LazyLock::new(|| Stemmer::create(Algorithm::English));

pub(super) fn is_function_word(word: &str) -> bool {
    FUNCTION_WORDS.binary_search(&word).is_ok()
}

/// The Snowball stem of the base form of a word in lower case, if it has only letters from a to z.
pub(super) fn stem(word: &str) -> Cow<'_, str> {
    // The stemmer would take the s of short words like "js" for a plural.
    if word.len() < 3 || !word.bytes().all(|b| b.is_ascii_lowercase()) {
        return Cow::Borrowed(word);
    }
    match IRREGULAR_FORMS.binary_search_by_key(&word, |(form, _)| form) {
        Ok(at) => IRREGULAR_FORMS.get(at).map_or(Cow::Borrowed(word), |(_, base)| STEMMER.stem(base)),
        Err(_) => STEMMER.stem(word),
    }
}

/// "Anna's" is "Anna". An apostrophe elsewhere stays.
pub(super) fn without_clitic(word: &str) -> &str {
    ["'s", "'re", "'ve", "'ll", "'d", "'m"]
        .iter()
        .find_map(|clitic| {
            let (rest, end) = word.split_at_checked(word.len().checked_sub(clitic.len())?)?;
            (!rest.is_empty() && end.eq_ignore_ascii_case(clitic)).then_some(rest)
        })
        .unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_lists_are_sorted_and_consistent() {
        assert!(FUNCTION_WORDS.is_sorted_by(|a, b| a < b));
        assert!(IRREGULAR_FORMS.is_sorted_by(|a, b| a.0 < b.0));
        for (form, base) in IRREGULAR_FORMS {
            assert_ne!(form, base);
            assert!(!is_function_word(form) && !is_function_word(base), "{form}");
            assert!(IRREGULAR_FORMS.iter().all(|(other, _)| other != base), "{form} leads to {base}, itself a form");
        }
    }

    #[test]
    fn inflected_forms_share_a_stem() {
        for forms in [
            &["go", "goes", "going", "went", "gone"][..],
            &["paint", "paints", "painted", "painting", "paintings"],
            &["child", "children"],
            &["buy", "buys", "bought", "buying"],
        ] {
            for form in forms {
                assert_eq!(stem(form), stem(forms[0]), "{form}");
            }
        }
    }

    #[test]
    fn short_and_foreign_words_have_no_stem() {
        for word in ["as", "js", "3", "straßes", "gpt4s", "", "c++"] {
            assert_eq!(stem(word), word);
        }
    }

    #[test]
    fn clitic_is_removed_and_other_apostrophes_stay() {
        for (word, rest) in
            [("Anna's", "Anna"), ("ANNA'S", "ANNA"), ("they're", "they"), ("o'brien", "o'brien"), ("'s", "'s")]
        {
            assert_eq!(without_clitic(word), rest);
        }
    }
}
