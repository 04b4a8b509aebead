use jiff::{Timestamp, tz::TimeZone};

use super::*;

fn said(words: &str) -> Statement {
    // A Monday.
    let at: Timestamp = "2026-11-23T02:00:00Z".parse().unwrap();
    Statement {
        text: words.into(),
        language: Language::detect(words),
        said_at: at,
        zone: TimeZone::get("Asia/Shanghai").unwrap(),
    }
}

fn facts(words: &str) -> Vec<String> {
    let said = said(words);
    let found = find(&said);
    for fact in &found {
        let fact = Fact {
            kind: fact.kind,
            content: fact.content.clone(),
            quote: fact.quote.clone(),
            date: fact.date,
            status: FactStatus::New,
            metadata: Metadata::new(),
        };
        assert_eq!(fact.check(&said), Ok(()), "{words}: {fact:?}");
    }
    found.into_iter().map(|fact| fact.content).collect()
}

#[test]
fn no_rule_is_lost() {
    assert_eq!((english::rules(), chinese::rules()), (37, 30));
}

#[test]
fn what_people_say_of_themselves_in_english_is_found() {
    for (words, expected) in [
        ("Hi, I'm Ann.", &["The user's name is Ann."][..]),
        ("My name is Bob and I live in New York.", &["The user's name is Bob.", "The user lives in New York."]),
        ("Just call me Zoë!", &["The user's name is Zoë."]),
        ("I'm 16 years old and study physics.", &["The user is 16 years old.", "The user majors in physics."]),
        ("By the way, I'm allergic to peanuts.", &["The user is allergic to peanuts."]),
        ("I am not allergic to peanuts after all.", &["The user is not allergic to peanuts."]),
        ("I'm a high school student.", &["The user is a high school student."]),
        ("I work as a nurse now.", &["The user is a nurse."]),
        ("I'm an engineer at Siemens.", &["The user is an engineer at Siemens."]),
        ("I go to Stanford University.", &["The user goes to Stanford University."]),
        ("I've switched my major to biology.", &["The user majors in biology."]),
        ("I moved to Paris last month.", &["The user lives in Paris."]),
        ("I'm from Brazil, but I live in Lisbon.", &["The user is from Brazil.", "The user lives in Lisbon."]),
        ("I really like linear algebra.", &["The user likes linear algebra."]),
        ("I don't like coffee any more.", &["The user dislikes coffee."]),
        ("I prefer short explanations.", &["The user prefers short explanations."]),
        ("I learn best with diagrams.", &["The user learns best with diagrams."]),
        ("I always mix up eigenvalues and eigenvectors.", &["The user mixes up eigenvalues and eigenvectors."]),
        ("I struggle with word problems.", &["The user finds word problems hard."]),
        ("My goal is to get an A in calculus.", &["The user's goal is to get an A in calculus."]),
        ("I want to become a doctor.", &["The user wants to become a doctor."]),
        ("My calculus exam is next Friday.", &["The user's calculus exam is on 2026-12-04."]),
        ("I have a chemistry test on December 5.", &["The user's chemistry test is on 2026-12-05."]),
        ("I speak German and Polish.", &["The user speaks German and Polish."]),
        ("I'm learning Spanish.", &["The user is learning Spanish."]),
        ("My native language is Dutch.", &["The user's native language is Dutch."]),
        ("I have two cats.", &["The user has two cats."]),
        ("My dog is called Rex.", &["The user's dog is called Rex."]),
        ("My favourite subject is history.", &["The user's favourite subject is history."]),
        ("My German level is B1.", &["The user's level in German is B1."]),
        ("I'm allergic to nuts, what can I eat?", &["The user is allergic to nuts."]),
        ("I usually study at night.", &["The user studies at night."]),
    ] {
        assert_eq!(facts(words), expected, "{words}");
    }
}

#[test]
fn what_people_say_of_themselves_in_chinese_is_found() {
    for (words, expected) in [
        ("你好，我叫小明。", &["用户的名字是小明。"][..]),
        (
            "我叫李雷，今年16岁，在读高二，住在杭州。",
            &["用户的名字是李雷。", "用户今年16岁。", "用户在读高二。", "用户住在杭州。"],
        ),
        ("请叫我阿强吧", &["用户的名字是阿强。"]),
        ("我是一名护士。", &["用户是护士。"]),
        ("我对花生过敏，请注意。", &["用户对花生过敏。"]),
        ("其实我对花生不过敏。", &["用户对花生不过敏。"]),
        ("我喜欢用图解学习。", &["用户喜欢用图解学习。"]),
        ("我不太喜欢背单词。", &["用户不喜欢背单词。"]),
        ("我在北京大学读书。", &["用户在北京大学上学。"]),
        ("我的专业是计算机科学。", &["用户的专业是计算机科学。"]),
        ("我搬到上海了。", &["用户住在上海。"]),
        ("我来自四川。", &["用户来自四川。"]),
        ("我下周五有高数考试。", &["用户的高数考试在2026年12月4日。"]),
        ("我的英语六级考试在12月19日。", &["用户的英语六级考试在2026年12月19日。"]),
        ("高数考试改到12月10号了", &["用户的高数考试在2026年12月10日。"]),
        ("我的目标是考上清华大学。", &["用户的目标是考上清华大学。"]),
        ("我想当医生。", &["用户想当医生。"]),
        ("我打算考研。", &["用户想考研。"]),
        ("我总是分不清特征值和特征向量。", &["用户常常分不清特征值和特征向量。"]),
        ("我数学不好。", &["用户的弱项是数学。"]),
        ("我的母语是粤语。", &["用户的母语是粤语。"]),
        ("我在学日语。", &["用户在学日语。"]),
        ("我养了一只猫。", &["用户有一只猫。"]),
        ("我的猫叫团团。", &["用户的猫叫团团。"]),
        ("我最喜欢的科目是历史。", &["用户最喜欢的科目是历史。"]),
        ("我习惯晚上学习。", &["用户习惯晚上学习。"]),
        ("我对牛奶过敏，早餐吃什么好？", &["用户对牛奶过敏。"]),
        ("我吃素。", &["用户吃素。"]),
        ("我对天文感兴趣。", &["用户喜欢天文。"]),
    ] {
        assert_eq!(facts(words), expected, "{words}");
    }
}

#[test]
fn remarks_questions_suppositions_and_others_are_not() {
    for words in [
        "I'm tired today.",
        "I'm at the library.",
        "What is my name?",
        "If I lived in Paris, I would speak French.",
        "My sister is allergic to peanuts.",
        "I like this explanation.",
        "I love it!",
        "I like the way you explain.",
        "I want to know what a limit is.",
        "I used to live in Rome.",
        "I have a question about limits.",
        "I am not sure I like maths.",
        "I'm studying chapter 3 right now.",
        "Tom says I like chess",
        "I have to go now.",
        "Call me later.",
        "我有点累。",
        "我在图书馆。",
        "我叫什么名字？",
        "如果我住在北京，我会去爬长城。",
        "我妹妹对花生过敏。",
        "我喜欢你的讲解。",
        "我不知道极限是什么。",
        "我想知道极限的定义。",
        "我今天在北京大学听讲座。",
        "我以前住在上海。",
        "小红喜欢唱歌。",
        "我刚看完第三章。",
        "我叫了外卖。",
        "我叫小明，用英语怎么说？",
        "我是不是住在北京？",
        "How do I say I live in Rome in Italian?",
        "Do I like tea?",
        "Am I a good student, or do I live in Rome?",
    ] {
        assert_eq!(facts(words), [""; 0], "{words}");
    }
}

#[test]
fn what_is_said_again_is_the_same_and_what_is_said_otherwise_takes_its_place() {
    let known = |id: &str, words: &str| {
        let found = find(&said(words)).remove(0);
        let metadata = BTreeMap::from([(SUBJECT.to_owned(), found.subject), (VALUE.to_owned(), found.value)]);
        KnownFact { id: id.into(), content: found.content, said_at: said(words).said_at, metadata }
    };
    let known = [
        known("home", "I live in Berlin."),
        known("tea", "I like tea."),
        known("length", "I prefer short explanations."),
        known("exam", "My calculus exam is next Friday."),
        KnownFact {
            id: "saved".into(),
            content: "The user is vegan.".into(),
            said_at: said("").said_at,
            metadata: Metadata::new(),
        },
    ];
    let standing = |words: &str| standing(&find(&said(words)).remove(0), &known);
    assert_eq!(standing("I live in Berlin now."), FactStatus::Duplicate("home".into()));
    assert_eq!(standing("I moved to Rome."), FactStatus::Supersedes(vec!["home".into()]));
    assert_eq!(standing("I don't like tea any more."), FactStatus::Supersedes(vec!["tea".into()]));
    assert_eq!(standing("I like coffee."), FactStatus::New);
    assert_eq!(standing("I prefer long explanations."), FactStatus::Supersedes(vec!["length".into()]));
    assert_eq!(standing("My calculus exam is on December 10."), FactStatus::Supersedes(vec!["exam".into()]));
    assert_eq!(standing("I'm vegan."), FactStatus::Duplicate("saved".into()));
}
