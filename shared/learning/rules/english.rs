//! Rules for English.

use std::sync::LazyLock;

use jiff::civil::Date;
use regex::Regex;

use super::{FactKind, Found, Parts, Read, Reading, Rule, compiled, read};
use crate::{learning::own_words::folded, temporal};

/// A question at the end of a sentence, before which a statement may stand.
static QUESTION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i),? (?:so |and |but )?(?:what|which|how|why|where|when|who|can|could|do|does|did|is|are|will|would|should|any|shall|may|am)\b[^,]*\?+$").ok()
});

/// A sentence that supposes or tells of the past, or asks how its own words are said, says nothing of how things are.
static NOT_SO: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?i)\b(?:if|suppose|supposing|imagine|assume|assuming|pretend|let's say|for example|for instance|e\.g\.|such as|used to|would have|wouldn't|wish|maybe|perhaps|might|not sure|joking|kidding|just a joke|when i was|as a child|back then|years ago|how (?:do|would|can|should|to) (?:i|you|we)? ?(?:say|write|spell|translate|pronounce)|mean in|in english|in french|in german|in spanish|translate|grammar|correct sentence)\b",
    )
    .ok()
});

/// Where a sentence goes on with another statement.
static JOINT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?i)(?:,|;|:| -| –|—)? (?:and|but|so|because|since|although|while|plus) (?:also |then )?|(?:,|;|:| -| –|—) ",
    )
    .ok()
});

/// A statement of its own.
static STATEMENT: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?i)^(?:i|i'm|i've|i'll|i'd|im|my)\b").ok());

/// A statement whose subject is that of the one before.
static CONTINUATION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)^(?:also |really |now |currently |usually |still )*(?:live|like|love|hate|dislike|enjoy|prefer|study|work|speak|go to|attend|major|moved|want to|plan to|hope to|have an?|don't like|do not like|can't stand|am|allergic to)\b").ok()
});

/// What people say before they come to it.
static LEAD: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)^(?:(?:…|hi|hello|hey|well|oh|ok|okay|yes|yeah|no|nope|btw|by the way|also|actually|and|but|so|fyi|honestly|recently|now|sorry|thanks|thank you|just so you know|just to let you know|in fact|to be honest|correction|update|from now on|these days|nowadays|last (?:week|month|year|summer)|this (?:week|month|year|semester|term)|as of (?:today|this week|this month)|in general|generally|as you know|personally|unfortunately|luckily|finally|please|for what it's worth|remember that|remember|note that|you should know that|did i tell you|good news|big news)[,:!.]* +)*").ok()
});

/// A name of a person, a place or a school.
const NAME: &str = r"\p{Lu}[\p{L}\d.'’&-]*(?: (?:of |de |la |the |for |and |at )?\p{Lu}[\p{L}\d.'’&-]*){0,4}";
const I_AM: &str = r"(?i:i'm|i am|im)(?i: now| currently| actually| already| also| still| only)*";
const I: &str = r"(?i:i)(?i: now| currently| actually| also| still| really| absolutely| just| do| totally| usually| generally| normally| mostly| always| often| never really| sometimes)*";
const I_HAVE: &str = r"(?i:i've|i have|i)(?i: just| recently| now| finally)*";

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    use FactKind::{Education, Goal, Health, Identity, Language, Place, Preference, Relation, Skill, Work};
    let rule = |kind, pattern: String, read: Read| (kind, format!("^(?:{pattern})"), read);
    compiled(vec![
        rule(Identity, format!(r"(?i:my name is|my name's)(?i: now| actually)? (?P<v>{NAME}|[\p{{L}}'-]+(?: [\p{{L}}'-]+)?)[.! ]*$"), |p| {
            fact("name", name(p.get("v"))?, |v| format!("The user's name is {v}."))
        }),
        rule(Identity, format!(r"(?:{I_AM} called|(?i:(?:people|friends|everyone|everybody|my friends) call me|(?:just |you can |please )?call me|i go by)) (?P<v>{NAME})"), |p| {
            fact("name", name(p.get("v"))?, |v| format!("The user's name is {v}."))
        }),
        rule(Identity, format!(r"(?:{I_AM} (?P<v>\d{{1,2}})(?: years old| years of age)?[.! ]*$|{I_HAVE} turned (?P<w>\d{{1,2}})\b)"), |p| {
            let age = if p.get("v").is_empty() { p.get("w") } else { p.get("v") };
            fact("age", age.to_owned(), |v| format!("The user is {v} years old."))
        }),
        rule(Identity, r"(?i:my birthday(?: is|'s)(?: on)?) (?P<v>.+)".to_owned(), |p| {
            fact("birthday", clean(p.get("v"))?, |v| format!("The user's birthday is {v}."))
        }),
        rule(Education, format!(r"{I_AM} (?i:in|starting|entering) (?P<v>(?i:(?:the )?\w+ grade|grade \w+|year \d+|my (?:first|second|third|fourth|final|last|junior|senior|freshman|sophomore) year(?: (?:of|at) [\w ]+)?|(?:high|middle|primary|elementary|graduate|grad|medical|law) school))\b"), |p| {
            fact("grade", clean(p.get("v"))?, |v| format!("The user is in {v}."))
        }),
        rule(Education, format!(r"{I_AM} (?i:an?) (?P<v>(?i:freshman|sophomore|junior|senior|(?:first|second|third|fourth|final|1st|2nd|3rd)[- ]year(?: \w+){{0,2}} student|(?:high|middle)[- ]school (?:student|freshman|sophomore|junior|senior)|undergraduate|(?:phd|master's|graduate|grad) student)(?: in [\w ]+| at .+)?)"), |p| {
            fact("grade", clean(p.get("v"))?, |v| format!("The user is {} {v}.", article(v)))
        }),
        rule(Education, format!(r"(?:{I} (?i:major|am majoring) in|{I_AM} majoring in|(?i:my major is(?: now)?)|{I_HAVE} (?i:switched|changed)(?i: my)? (?i:major)(?i: from [\w ]+?)? (?i:to)) (?P<v>.+)"), |p| {
            fact("major", clean(p.get("v"))?, |v| format!("The user majors in {v}."))
        }),
        rule(Education, format!(r"{I} (?i:study) (?P<v>(?i:physics|applied physics|mathematics|maths?|statistics|chemistry|biology|biochemistry|medicine|nursing|law|economics|business|finance|accounting|history|philosophy|psychology|sociology|engineering|(?:mechanical|electrical|civil|chemical|software) engineering|computer science|data science|literature|linguistics|architecture|journalism|education|music|art|design|geography|geology))\b"), |p| {
            fact("major", clean(p.get("v"))?, |v| format!("The user majors in {v}."))
        }),
        rule(Education, format!(r"(?:{I} (?i:go to|attend|study at)|{I_AM} (?i:at|studying at|enrolled at|a student at)|{I_HAVE} (?i:transferred to|switched to|started at)) (?i:the )?(?P<v>{NAME})"), |p| {
            let school = p.get("v");
            let is_school = ["University", "College", "School", "Institute", "Academy", "Gymnasium", "Polytechnic"].iter().any(|word| school.contains(word))
                || (2..=6).contains(&school.len()) && school.chars().all(char::is_uppercase);
            fact("school", school.to_owned(), |v| format!("The user goes to {v}.")).filter(|_| is_school)
        }),
        rule(Education, format!(r"(?i:my (?P<s>[\w +#]{{2,20}}?)(?: level)? is(?: now| about| around| at| only)*) (?P<v>(?i:[abc][12]|a?n? ?(?:complete )?beginner|intermediate|advanced|hsk ?\d|n[1-5]))\b|{I_AM} (?i:at |an? )?(?i:complete |total |absolute )?(?P<w>(?i:[abc][12]|beginner|intermediate|advanced))(?i: level| learner)? (?i:in|at|of) (?P<t>[\w +#]+)"), |p| {
            let (subject, level) = if p.get("s").is_empty() { (p.get("t"), p.get("w")) } else { (p.get("s"), p.get("v")) };
            let subject = clean(subject.strip_suffix(" level").unwrap_or(subject))?;
            fact(&format!("level:{subject}"), level.to_owned(), |v| format!("The user's level in {subject} is {v}."))
        }),
        rule(Work, format!(r"(?:{I_AM} (?i:working as |employed as )?(?i:an?) (?P<v>(?:[\w'-]+ ){{0,4}}?(?i:teacher|professor|engineer|developer|programmer|nurse|doctor|physician|dentist|designer|lawyer|accountant|manager|researcher|scientist|analyst|writer|journalist|editor|chef|cook|pilot|driver|student|pharmacist|architect|electrician|translator|musician|artist|consultant|librarian|tutor|intern|entrepreneur|farmer|mechanic|photographer|psychologist|therapist|waiter|waitress|cashier|salesperson|assistant|technician|veterinarian|freelancer|plumber|carpenter|firefighter|soldier|biologist|chemist|physicist|mathematician|economist|historian))(?P<r> (?i:at|in|for|from) [^,;.]{{2,40}})?[.! ]*$|(?:{I} (?i:work)|{I_HAVE} (?i:started working|begun working)) (?i:as an?) (?P<w>[^,;.]{{3,50}}))"), |p| {
            let job = if p.get("v").is_empty() { p.get("w").to_owned() } else { [p.get("v"), p.get("r")].join(" ") };
            fact("occupation", clean(&job)?, |v| format!("The user is {} {v}.", article(v)))
        }),
        rule(Work, format!(r"(?:{I} (?i:work)|{I_HAVE} (?i:started working|got a(?: new)? job)) (?i:at|for) (?P<v>(?i:an? |the )?[^,;.]{{2,50}})"), |p| {
            fact("employer", clean(p.get("v"))?, |v| format!("The user works at {v}."))
        }),
        rule(Place, format!(r"(?:{I} (?i:live in)|{I_AM} (?i:living in|based in)|{I_HAVE} (?i:moved|relocated)(?i: from {NAME})? (?i:to)) (?P<v>(?:the )?{NAME}(?:, {NAME})?)"), |p| {
            let is_school = ["University", "College", "School"].iter().any(|word| p.get("v").contains(word));
            fact("home", p.get("v").to_owned(), |v| format!("The user lives in {v}.")).filter(|_| !is_school)
        }),
        rule(Place, format!(r"(?:{I_AM} (?i:originally )?(?i:from)|{I} (?i:come from|was born in|grew up in)) (?P<v>(?:the )?{NAME})"), |p| {
            fact("origin", p.get("v").to_owned(), |v| format!("The user is from {v}."))
        }),
        rule(Health, format!(r"(?:{I_AM}(?i: not| no longer)(?i: actually| really)? (?i:allergic to)) (?P<v>.+)"), |p| {
            let to = clean(p.get("v"))?;
            fact(&format!("allergy:{to}"), "no".to_owned(), |_| format!("The user is not allergic to {to}."))
        }),
        rule(Health, format!(r"(?:{I_AM} (?i:very |severely |really |terribly |mildly |slightly )?(?i:allergic to) (?P<v>.+)|{I_HAVE} (?i:an? )(?i:severe |bad |strong |mild )?(?P<w>[\w ]+?) (?i:allergy))"), |p| {
            let to = clean(if p.get("v").is_empty() { p.get("w") } else { p.get("v") })?;
            fact(&format!("allergy:{to}"), "yes".to_owned(), |_| format!("The user is allergic to {to}."))
        }),
        rule(Health, format!(r"{I_AM} (?P<not>(?i:not|no longer) )?(?i:an? )?(?P<v>(?i:vegetarian|vegan|pescatarian))\b"), |p| {
            let not = if p.get("not").is_empty() { "" } else { "not " };
            fact("diet", format!("{not}{}", p.get("v").to_lowercase()), |v| format!("The user is {v}."))
        }),
        rule(Health, format!(r"(?:{I_AM} (?P<v>(?i:lactose[- ]intolerant|gluten[- ]intolerant|dyslexic|colou?r[- ]?blind|left[- ]handed|diabetic|deaf|autistic|asthmatic|short[- ]sighted))|{I_HAVE} (?P<w>(?i:dyslexia|adhd|asthma|diabetes|celiac disease|epilepsy|autism)))\b"), |p| {
            if p.get("w").is_empty() {
                fact(&format!("condition:{}", p.get("v")), "yes".to_owned(), |_| format!("The user is {}.", p.get("v")))
            } else {
                fact(&format!("condition:{}", p.get("w")), "yes".to_owned(), |_| format!("The user has {}.", p.get("w")))
            }
        }),
        rule(Language, r"(?i:my (?:native|first) language is|my mother tongue is) (?P<v>[\p{L} ]+)".to_owned(), |p| {
            fact("native language", clean(p.get("v"))?, |v| format!("The user's native language is {v}."))
        }),
        rule(Language, format!(r"{I} (?i:speak)(?i: fluent| some| a little| a bit of)? (?P<v>\p{{Lu}}\p{{L}}+(?:(?:, | and |, and )\p{{Lu}}\p{{L}}+)*)"), |p| {
            fact(&format!("speaks:{}", p.get("v")), "yes".to_owned(), |_| format!("The user speaks {}.", p.get("v")))
        }),
        rule(Language, format!(r"(?:{I_AM} (?i:learning|studying|teaching myself)|{I_HAVE} (?i:started|begun) (?i:learning|to learn|studying)) (?P<v>\p{{Lu}}[\p{{L}}+#]*(?: \p{{Lu}}\p{{L}}*)?|(?i:(?:the |to play the |to play )?(?:piano|guitar|violin|drums|flute|chess)))(?: [^,;]*)?[.! ]*$"), |p| {
            fact(&format!("learns:{}", p.get("v")), "yes".to_owned(), |_| format!("The user is learning {}.", p.get("v")))
        }),
        rule(Language, format!(r"(?:{I_HAVE} (?i:stopped|given up|gave up|quit) (?i:learning|studying)) (?P<v>\p{{Lu}}[\p{{L}}+#]*)"), |p| {
            fact(&format!("learns:{}", p.get("v")), "no".to_owned(), |_| format!("The user has stopped learning {}.", p.get("v")))
        }),
        rule(Preference, r"(?i:my (?:new |all-time )?favou?rite (?P<s>[\w ]{2,30}?) (?:is|are)(?: now)?) (?P<v>.+)".to_owned(), |p| {
            let subject = p.get("s").to_lowercase();
            fact(&format!("favourite:{subject}"), clean(p.get("v"))?, |v| format!("The user's favourite {subject} is {v}."))
        }),
        rule(Preference, format!(r"{I} (?i:(?:can |can only )?(?:learn|understand|remember|focus|concentrate)(?: things| new things| best)?) (?P<h>(?i:best|better|more easily|most easily) )?(?P<v>(?i:with|by|when|through|from|in|at|using|while|after) .+)"), |p| {
            let is_best = !p.get("h").is_empty() || p.0.get(0).is_some_and(|all| all.as_str().to_lowercase().contains(" best "));
            fact("learns best", rewritten(p.get("v"))?, |v| format!("The user learns best {v}.")).filter(|_| is_best)
        }),
        rule(Preference, r"(?i:i (?:usually|normally|mostly|always|can only|only|now)(?: now)? (?:study|revise|do my homework)) (?P<v>(?i:in the (?:early )?(?:mornings?|evenings?|afternoons?)|at night|late at night|on weekends|at weekends|(?:before|after) [\w ]+))".to_owned(), |p| {
            fact("study time", clean(p.get("v"))?, |v| format!("The user studies {v}."))
        }),
        rule(Preference, format!(r"(?:{I}|(?i:i'd)) (?i:much )?(?i:prefer) (?P<v>.+)"), |p| {
            let preferred = rewritten(p.get("v"))?;
            let lower = preferred.to_lowercase();
            let first = [" to ", " over ", " rather than ", " instead of ", " before ", " with ", " in ", " when "];
            let end = first.iter().filter_map(|word| lower.find(word)).min().unwrap_or(lower.len());
            // Short explanations today, long ones tomorrow: it is about explanations.
            let head = lower[..end].split_whitespace().next_back().unwrap_or_default().to_owned();
            fact(&format!("prefers:{head}"), preferred, |v| format!("The user prefers {v}.")).filter(|_| !is_vague(p.get("v")))
        }),
        rule(Preference, format!(r"(?:{I} (?i:don't|do not|no longer|don’t)(?i: really| actually| even)? (?i:like|love|enjoy)|{I} (?i:dislike|hate|detest|loathe|can't stand|cannot stand)|{I_AM}(?i: not) (?i:a fan of|into|fond of|interested in)) (?P<v>.+)"), |p| taste(p, false)),
        rule(Preference, format!(r"(?:{I} (?i:like|love|enjoy|adore)|{I_AM} (?i:a (?:big |huge )?fan of|really into|into|fond of|crazy about|passionate about)) (?P<v>.+)"), |p| taste(p, true)),
        rule(Skill, format!(r"(?:{I} (?i:mix up|confuse|keep mixing up|keep confusing|get confused (?:by|about))|{I_AM} (?i:mixing up|confusing)) (?P<v>.+)"), |p| {
            let what = clean_whole(p.get("v"))?;
            fact(&format!("skill:{what}"), "weak".to_owned(), |_| format!("The user mixes up {what}."))
        }),
        rule(Skill, format!(r"(?:{I} (?i:struggle|am struggling|have (?:a lot of |some |great )?(?:trouble|difficulty|difficulties|problems)) (?i:with)|{I_AM} (?i:struggling with|(?:really |very |pretty |quite |so )?(?:bad at|weak (?:at|in)|not (?:very |so |that )?good at|terrible at))) (?P<v>.+)"), |p| {
            let what = clean(p.get("v"))?;
            fact(&format!("skill:{what}"), "weak".to_owned(), |_| format!("The user finds {what} hard.")).filter(|_| !is_vague(&what))
        }),
        rule(Skill, format!(r"{I} (?i:find) (?P<v>.+?) (?i:(?:very |really |quite |so |too )?(?:hard|difficult|confusing))\b"), |p| {
            let what = clean(p.get("v"))?;
            fact(&format!("skill:{what}"), "weak".to_owned(), |_| format!("The user finds {what} hard.")).filter(|_| !is_vague(&what))
        }),
        rule(Skill, format!(r"(?:{I_AM} (?i:(?:really |very |pretty |quite )?(?:good|great|strong) (?:at|in))|{I} (?i:no longer struggle with)) (?P<v>.+)"), |p| {
            let what = clean(p.get("v"))?;
            fact(&format!("skill:{what}"), "strong".to_owned(), |_| format!("The user is good at {what}.")).filter(|_| !is_vague(&what))
        }),
        rule(Goal, r"(?i:my (?:main |long-term |big |new |current |ultimate )*(?:goal|aim|dream|target)(?: for [\w ]+?| now)? is(?: now)?(?: still)?) (?P<v>.+)".to_owned(), |p| {
            fact("goal", rewritten(p.get("v"))?, |v| format!("The user's goal is {v}."))
        }),
        rule(Goal, format!(r"(?:{I} (?i:want|plan|hope|aim|intend|am planning|am hoping|am trying)|(?i:i'd like|i would like)|{I_AM} (?i:planning|hoping|aiming|trying)) (?i:to) (?P<v>(?i:become|be an? |get into|get in to|pass|study abroad|study at|study in|study medicine|study law|improve my|reach|score|win|apply|graduate|master|publish|move to|transfer|get an? \w+ (?:in|certificate|degree|score|scholarship)|run a marathon|speak|learn to (?:play|speak|code|program|swim|cook|drive)) ?.*)"), |p| {
            let goal = rewritten(p.get("v"))?;
            let lower = goal.to_lowercase();
            let is = |beginnings: &[&str]| beginnings.iter().any(|beginning| lower.starts_with(beginning));
            let subject = if is(&["become", "be a"]) {
                "goal:career".to_owned()
            } else if is(&["get into", "get in to", "apply", "transfer", "study at"]) {
                "goal:school".to_owned()
            } else {
                format!("goal:{lower}")
            };
            fact(&subject, goal, |v| format!("The user wants to {v}.")).filter(|_| !is_vague(&lower))
        }),
        rule(Goal, format!(r"{I_AM} (?i:preparing for|studying for|getting ready for) (?P<v>(?i:the |my |an? )?(?:[\w'-]+ ){{0,3}}(?i:exam|exams|test|finals|IELTS|TOEFL|SAT|GRE|GMAT|olympiad|competition|interview|certificate|certification))\b"), |p| {
            let exam = rewritten(p.get("v"))?;
            fact(&format!("prepares:{exam}"), "yes".to_owned(), |_| format!("The user is preparing for {exam}."))
        }),
        rule(Relation, format!(r"{I_HAVE} (?P<v>(?i:an?|one|two|three|four|five|\d) (?:[\w-]+ ){{0,2}}(?i:(?P<n>dog|cat|brother|sister|son|daughter|child|kid|sibling|rabbit|parrot|hamster|twin)(?:s|ren)?))(?i: (?:called|named) (?P<w>{NAME}))?"), |p| {
            let named = if p.get("w").is_empty() { String::new() } else { format!(" named {}", p.get("w")) };
            fact(&format!("has:{}", p.get("n")), format!("{}{named}", p.get("v")), |v| format!("The user has {v}."))
        }),
        rule(Relation, format!(r"(?i:my (?P<s>dog|cat|rabbit|parrot|hamster|brother|sister|wife|husband|son|daughter|girlfriend|boyfriend|partner|teacher|tutor|best friend|mother|father)(?:'s name is| is called| is named)) (?P<v>{NAME})"), |p| {
            let who = p.get("s").to_lowercase();
            fact(&format!("name of:{who}"), p.get("v").to_owned(), |v| format!("The user's {who} is called {v}."))
        }),
    ])
});

/// An event with a day.
static EVENT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(?:i (?:also |now |actually )?(?:have|'ve got|have got|will have|take|am taking|will take|sit|got)|i've got|i'll have|i'll take|i'm taking|i'm sitting|my|our) (?:an? |the |my |another |big |important )*(?P<s>(?:[\w'+#-]+ ){0,3}?(?:exams?|tests?|midterms?|finals?|quiz|interview|presentation|deadline|recital|competition|contest|thesis defen[cs]e|ielts|toefl|sat|gre|gmat|hsk|essay|thesis|assignment))\b").ok()
});

/// What is found in a sentence.
pub(super) fn find(sentence: &str, today: Date) -> Vec<Found> {
    if NOT_SO.as_ref().is_none_or(|not_so| not_so.is_match(sentence)) {
        return Vec::new();
    }
    let sentence = sentence.replace('’', "'");
    let Some(sentence) = QUESTION.as_ref().map(|question| question.replace(&sentence, "")) else { return Vec::new() };
    if sentence.contains('?') {
        return Vec::new();
    }
    if let Some(event) = event(&sentence, today) {
        return vec![event];
    }
    if let Some(greeting) = greeting(&sentence) {
        return vec![greeting];
    }
    clauses(&sentence).into_iter().filter_map(|(clause, quote)| read(&RULES, &clause, &quote)).collect()
}

fn event(sentence: &str, today: Date) -> Option<Found> {
    let event = EVENT.as_ref()?.captures(sentence)?;
    let (date, _) = temporal::upcoming_day(sentence, today)?;
    let is_over = sentence.contains(" was on ") || sentence.contains(" went ") || sentence.contains(" had ");
    let event = event.name("s")?.as_str();
    let event = match temporal::upcoming_day(event, today) {
        Some((_, words)) => event.replacen(words, "", 1),
        None => event.to_owned(),
    };
    let event = event.split_whitespace().collect::<Vec<_>>().join(" ");
    (!is_over && date >= today).then(|| Found {
        kind: FactKind::Event,
        subject: folded(&format!("event:{event}")),
        value: date.to_string(),
        content: format!("The user's {event} is on {date}."),
        date: Some(date),
        quote: sentence.to_owned(),
    })
}

/// "Hi, I'm Ann": with nothing before it, a capital letter is of an adjective as well ("I'm German").
fn greeting(sentence: &str) -> Option<Found> {
    static GREETING: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r"^(?i:hi|hello|hey)(?i: there)?[,!.]* (?i:i'm|i am|this is) (?P<v>\p{Lu}\p{Ll}+)(?: here)?[.!]*$")
            .ok()
    });
    let captured = GREETING.as_ref()?.captures(sentence)?;
    let v = name(captured.name("v")?.as_str())?;
    let Reading { subject, value, content } = fact("name", v, |v| format!("The user's name is {v}."))?;
    Some(Found { kind: FactKind::Identity, subject, value, content, date: None, quote: sentence.to_owned() })
}

/// The statements of a sentence, each as it would stand alone, with the words that it is made from.
fn clauses(sentence: &str) -> Vec<(String, String)> {
    let (Some(joint), Some(statement), Some(continuation), Some(lead)) =
        (JOINT.as_ref(), STATEMENT.as_ref(), CONTINUATION.as_ref(), LEAD.as_ref())
    else {
        return Vec::new();
    };
    let mut clauses: Vec<(String, String)> = Vec::new();
    let mut start = 0;
    let mut prefix = "";
    let mut cuts: Vec<(usize, usize, &str)> = Vec::new();
    let mut from = 0;
    while let Some(found) = joint.find_at(sentence, from) {
        let rest = &sentence[found.end()..];
        if statement.is_match(rest) {
            cuts.push((found.start(), found.end(), ""));
        } else if continuation.is_match(rest) {
            cuts.push((found.start(), found.end(), if rest.starts_with("allergic") { "I am " } else { "I " }));
        }
        from = found.end().max(found.start() + 1);
    }
    cuts.push((sentence.len(), sentence.len(), ""));
    for (end, next, next_prefix) in cuts {
        if start <= end {
            let quote = sentence[start..end].trim();
            let lead_end = lead.find(quote).map_or(0, |lead| lead.end());
            clauses.push((format!("{prefix}{}", &quote[lead_end..]), quote.to_owned()));
        }
        // Only what the user said of themselves goes on.
        let goes_on = clauses.last().is_some_and(|(clause, _)| statement.is_match(clause));
        prefix = if goes_on { next_prefix } else { "" };
        start = next;
    }
    clauses
}

fn fact(subject: &str, value: String, content: impl FnOnce(&str) -> String) -> Option<Reading> {
    let content = content(&value);
    Reading::new(subject, &value, content)
}

fn taste(parts: &Parts<'_>, likes: bool) -> Option<Reading> {
    let what = rewritten(parts.get("v"))?;
    if is_vague(&what) {
        return None;
    }
    let lower = what.to_lowercase();
    let bare =
        ["the ", "a ", "an ", "my ", "their "].iter().find_map(|article| lower.strip_prefix(article)).unwrap_or(&lower);
    let verb = if likes { "likes" } else { "dislikes" };
    fact(&format!("taste:{bare}"), verb.to_owned(), |_| format!("The user {verb} {what}."))
}

fn name(text: &str) -> Option<String> {
    let text = text.trim_matches(|c: char| !c.is_alphanumeric());
    let first = text.split_whitespace().next()?.to_lowercase();
    let is_word = [
        "on", "not", "the", "in", "a", "an", "tomorrow", "later", "back", "when", "maybe", "now", "if", "your", "hard",
        "too", "so", "very", "master", "king", "god",
    ];
    (!is_word.contains(&first.as_str())).then(|| text.to_owned())
}

/// The part of a sentence that a rule took, up to where the sentence goes on with something else.
fn clean(text: &str) -> Option<String> {
    cleaned(text, true)
}

/// The same where what is joined by "and" belongs together.
fn clean_whole(text: &str) -> Option<String> {
    cleaned(text, false)
}

fn cleaned(text: &str, stops_at_comma: bool) -> Option<String> {
    static STOP: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r"(?i)(?: because| since| so that| so| but| although| though| which| who| and (?:i|my|it|that|you|we|this|he|she|they)\b|[;:(!…]| - | – |—|\. ).*$").ok()
    });
    static TAIL: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r"(?i)(?: now| after all| these days| nowadays| too| as well| a lot| very much| so much| the most| most of all| any ?more| anymore| at the moment| by the way| btw| though| lately| already| actually| at all| please)*[\s.,!]*$").ok()
    });
    let text = STOP.as_ref()?.replace(text, "");
    let text = if stops_at_comma { text.split(", ").next().unwrap_or_default().to_owned() } else { text.into_owned() };
    let text = TAIL.as_ref()?.replace(&text, "");
    let text = text.trim().trim_end_matches(['.', '!', ',']);
    (!text.is_empty()).then(|| text.to_owned())
}

/// The part with the user as the third person.
fn rewritten(text: &str) -> Option<String> {
    static PERSON: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"(?i)\b(?:i'm|i am|i've|i|my|me|myself|mine)\b").ok());
    let text = clean(text)?;
    let text =
        PERSON.as_ref()?.replace_all(&text, |found: &regex::Captures<'_>| match found[0].to_lowercase().as_str() {
            "i'm" | "i am" => "they are",
            "i've" => "they have",
            "i" => "they",
            "my" => "their",
            "me" => "them",
            "myself" => "themselves",
            _ => "theirs",
        });
    Some(text.into_owned())
}

/// Whether it says nothing without what was said around it, or is about the assistant.
fn is_vague(text: &str) -> bool {
    static VAGUE: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r"(?i)^(?:it|this|that|these|those|them|him|her|you|your|yours|what|how|why|where|when|which|one|both|all|everything|nothing|something|the (?:way|idea|answer|first|second|last|other|explanation|example|one|above|rest|same|sound)|to (?:know|see|say|ask|think|hear)|(?:them|him|her) )\b|\b(?:you|your|this|that|these|those)\b|\b(?:today|tonight|right now|yesterday|this morning)\b").ok()
    });
    VAGUE.as_ref().is_none_or(|vague| vague.is_match(text))
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O']) && !noun.starts_with("uni") { "an" } else { "a" }
}

/// How many rules there are, for a test.
#[cfg(test)]
pub(super) fn rules() -> usize {
    RULES.len()
}
