//! Rules for Chinese.

use std::sync::LazyLock;

use jiff::civil::Date;
use regex::Regex;

use super::{FactKind, Found, Parts, Read, Reading, Rule, compiled, read};
use crate::{learning::own_words::folded, temporal};

/// A sentence that supposes or tells of the past, or asks how its own words are said, says nothing of how things are.
static NOT_SO: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"如果|假如|假设|要是|假使|倘若|比如|例如|譬如|比方说|万一|假装|想象|以前|曾经|过去|小时候|当年|那时候|本来想|也许|可能|或许|说不定|开玩笑|逗你|骗你|怎么(?:说|写|读|念|翻译|表达)|什么意思|翻译|造句|语法|病句",
    )
    .ok()
});

/// A part of a sentence that asks.
static ASKS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"[?？]|吗|什么|怎么|怎样|如何|为何|哪|是谁|几岁|多少|是不是|能不能|可不可以|呢[。！]?$").ok()
});

/// What people say before they come to it.
static LEAD: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^(?:…|你好|您好|大家好|嗨|哈喽|嘿|对了|顺便说一下|顺便说一句|顺便|其实|另外|还有|而且|然后|但是|但|不过|所以|因为|哦|嗯|啊|好的|好|是的|对|不是|不|谢谢|说实话|老实说|坦白说|更正一下|纠正一下|更新一下|告诉你|跟你说|自我介绍一下|先介绍一下|最近|现在|目前|如今|从现在开始|从现在起|从今天起|从今年起|这学期|这个学期|上学期|今年|去年|上个月|这个月|上周|昨天|刚刚|刚才|终于|记住|记得|请记住|请记得|[,，、:： ])*").ok()
});

/// A part of a sentence whose subject is that of the part before.
static CONTINUATION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^(?:也|还|又|并且|并|而且|但是|但|不过|现在|目前|今年|平时|平常|一般|最|特别|非常|很|比较|更|从小)*(?:叫|是|在|住|来自|搬|喜欢|喜爱|热爱|讨厌|不喜欢|不爱|爱|偏好|更喜欢|习惯|想|打算|计划|准备|希望|目标|学|读|念|上|主修|专业|擅长|不擅长|分不清|对|会说|母语|养|有|早上|上午|中午|下午|晚上|深夜|夜里|周末|\d{1,2}岁|十|大[一二三四]|高[一二三]|初[一二三]|研[一二三])").ok()
});

/// Somebody else of whom the sentence tells.
static SOMEBODY_ELSE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^(?:他|她|它|我?(?:的)?(?:朋友|同学|同桌|室友|舍友|老师|妈妈?|爸爸?|姐姐?|妹妹?|哥哥?|弟弟?|儿子|女儿|孩子|老公|老婆|同事|邻居|闺蜜|男朋友|女朋友|表[哥姐弟妹]|爷爷|奶奶|外婆|外公)|有人|别人|大家|老师|同学|小[\p{Han}])").ok()
});

/// 我, with words that change nothing of what is said.
const I: &str = r"我(?:本人)?(?:现在|目前|今年|平时|平常|一般|通常|也|还|都|一直|从小|从小就|就|其实|已经|刚刚|刚|又|真的|终于|最近|这学期|总是|老是|经常|常常|往往|特别|非常|很|超级|超|最|比较|更|更加|蛮|挺|十分|有点儿?)*";
/// What ends a name or the like.
const END: &str = r"(?:吧|就好|就行|就可以|就可以了|了|啦|哦|呀|的|，|,|。|！|!|\s|$)";
const SCHOOL: &str = r"[\p{Han}A-Za-z]{2,14}(?:大学|学院|中学|高中|初中|小学|附中|一中|二中|三中|职校|技校|研究院)|清华|北大|复旦|浙大|交大|同济|人大|南大|武大|中科大";

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    use FactKind::{Education, Goal, Health, Identity, Language, Place, Preference, Relation, Skill, Work};
    let rule = |kind, pattern: String, read: Read| (kind, format!("^(?:{pattern})"), read);
    compiled(vec![
        rule(Identity, format!(r"(?:我(?:现在|已经|今年)?(?:的名字(?:是|叫)|的名字改成了?|名字(?:是|叫)|改名(?:叫|为|成)了?|姓名是|叫做?|名叫)|(?:请|你可以|大家都|朋友们?都|可以)?(?:叫|称呼)我)(?P<v>[\p{{Han}}]{{2,4}}?|[A-Za-z]{{2,20}}){END}"), |p| {
            let name = p.get("v");
            let is_word = ["你", "他", "她", "它", "什么", "外卖", "起床", "主人", "大王", "陛下", "一声", "一下", "不", "了", "怎么", "车", "醒"].iter().any(|word| name.contains(word));
            fact("name", name.to_owned(), |v| format!("用户的名字是{v}。")).filter(|_| !is_word)
        }),
        rule(Identity, format!(r"{I}(?:满|是)?(?P<v>\d{{1,2}}|[一二两三四五六七八九十]{{1,3}})岁"), |p| {
            let age = temporal::chinese_number(p.get("v"))?.to_string();
            fact("age", age, |v| format!("用户今年{v}岁。"))
        }),
        rule(Identity, r"我的?生日(?:是|在)(?P<v>.+)".to_owned(), |p| {
            fact("birthday", clean(p.get("v"))?, |v| format!("用户的生日是{v}。"))
        }),
        rule(Education, format!(r"{I}(?:是|在|上|读|念|升(?:入|到|上)?了?|进入了?|成为了?)*(?:一名|一个|名|个)?(?P<v>(?:初|高|大)[一二三四五]|研究?[一二三]|博士?[一二三四]|[一二三四五六七八九]年级|初中|高中|大学|研究生|博士|小学[一二三四五六]年级)(?:了|的?学生|的?新生|生|在读|，|,|。|！|$)"), |p| {
            fact("grade", p.get("v").to_owned(), |v| format!("用户在读{v}。"))
        }),
        rule(Education, format!(r"(?:{I}(?:的)?专业(?:是|换成了?|改成了?)|{I}(?:主修|攻读)(?:的是)?|{I}(?:学|读|念)的(?:专业)?是|{I}(?:转专业)?(?:转|换)(?:到|去|成)了?)(?P<v>[\p{{Han}}A-Za-z]{{2,14}}?)(?:专业|系)?(?:了|，|,|。|！|$)"), |p| {
            let is_major = p.0.get(0).is_some_and(|all| ["专业", "修", "攻读", "系"].iter().any(|word| all.as_str().contains(word)));
            fact("major", p.get("v").to_owned(), |v| format!("用户的专业是{v}。")).filter(|_| is_major)
        }),
        rule(Education, format!(r"{I}(?:在|就读于|就读在|毕业于|转学(?:到|去)了?|转到了?|考(?:上|进)了|升入了?|进了)(?P<v>{SCHOOL})(?P<r>工作|上班|教书|任教)?"), |p| {
            fact("school", p.get("v").to_owned(), |v| format!("用户在{v}上学。")).filter(|_| p.get("r").is_empty())
        }),
        rule(Education, r"我的?(?P<s>[\p{Han}A-Za-z]{1,6}?)(?:水平|等级)(?:现在|目前|大概|大约|已经)*(?:是|在|到了?|达到了?)(?P<v>[A-Ca-c][12]|[\p{Han}\d]{1,6}?级|[Nn][1-5]|HSK ?\d|初级|中级|高级|入门|零基础)".to_owned(), |p| {
            fact(&format!("level:{}", p.get("s")), p.get("v").to_owned(), |v| format!("用户的{}水平是{v}。", p.get("s")))
        }),
        rule(Education, format!(r"(?:{I}是(?P<s>[\p{{Han}}A-Za-z+#]{{1,8}})(?:初学者|小白|新手)|{I}(?P<t>[\p{{Han}}A-Za-z+#]{{1,8}})(?:是)?零基础)"), |p| {
            let subject = if p.get("s").is_empty() { p.get("t") } else { p.get("s") };
            fact(&format!("level:{subject}"), "初学".to_owned(), |_| format!("用户是{subject}初学者。"))
        }),
        rule(Work, format!(r"(?:{I}(?:是|当|做|当上了?|成为了?|改行(?:当|做)了?|转行(?:当|做)了?)(?:了)?(?:一名|一个|一位|名|个|位)?|{I}的?(?:工作|职业)是)(?P<v>[\p{{Han}}A-Za-z]{{0,10}}(?:老师|教师|工程师|程序员|医生|护士|律师|会计|设计师|学生|研究员|科学家|记者|编辑|厨师|司机|警察|公务员|销售|经理|翻译|作家|画家|音乐人|药剂师|建筑师|分析师|产品经理|运营|客服|店员|农民|军人|消防员|摄影师|心理咨询师|实习生|自由职业者|助教|教练|导游))"), |p| {
            fact("occupation", p.get("v").to_owned(), |v| format!("用户是{v}。"))
        }),
        rule(Work, format!(r"{I}(?:跳槽到了?|换工作(?:到|去)了?|入职了?|在)(?P<v>[\p{{Han}}A-Za-z\d]{{2,14}}?)(?:工作|上班|任职|实习|当[\p{{Han}}]{{2,6}}|教书|任教|，|,|。|！|了|$)"), |p| {
            let is_work = p.0.get(0).is_some_and(|all| ["工作", "上班", "任职", "实习", "跳槽", "入职", "教书", "任教", "在", "当"].iter().skip(if all.as_str().contains('在') { 0 } else { 3 }).any(|word| *word != "在" && all.as_str().contains(word)));
            let is_home = p.get("v").contains("家");
            fact("employer", p.get("v").to_owned(), |v| format!("用户在{v}工作。")).filter(|_| is_work && !is_home)
        }),
        rule(Place, format!(r"{I}(?:住在?|搬(?:家)?(?:到|去|来)了?|定居在?|家住在?|的?家在|在)(?P<v>[\p{{Han}}]{{2,8}}?)(?P<r>居住|定居|生活|住)?(?:了|，|,|。|！|$)"), |p| {
            let place = p.get("v");
            let lives = p.0.get(0).is_some_and(|all| ["住", "搬", "定居", "家在", "生活"].iter().any(|word| all.as_str().contains(word)));
            let is_no_place = ["学校", "宿舍里", "图书馆", "楼", "家里", "一起", "附近", "这里", "那里", "校外"].iter().any(|word| place.contains(word));
            fact("home", place.trim_end_matches('市').to_owned(), |v| format!("用户住在{v}。")).filter(|_| lives && !is_no_place)
        }),
        rule(Place, format!(r"(?:{I}(?:来自|的?老家(?:是|在)|的?家乡(?:是|在))(?P<v>[\p{{Han}}]{{2,8}})|{I}是(?P<w>[\p{{Han}}]{{2,4}}?)人)(?:了|，|,|。|！|$)"), |p| {
            let place = if p.get("v").is_empty() { p.get("w") } else { p.get("v") };
            let is_no_place = ["好", "坏", "男", "女", "年轻", "成年", "负责", "普通", "老", "病", "素食"].iter().any(|word| place.contains(word));
            fact("origin", clean(place)?, |v| format!("用户来自{v}。")).filter(|_| !is_no_place)
        }),
        rule(Health, format!(r"{I}(?:对|不对)(?P<v>[\p{{Han}}A-Za-z]{{1,12}}?)(?P<not>不|没有?|不再)?(?:会|严重|轻微|有点|很|真的|那么)*过敏"), |p| {
            let is_not = !p.get("not").is_empty() || p.0.get(0).is_some_and(|all| all.as_str().contains("不对"));
            let to = p.get("v");
            let (value, content) = if is_not { ("no", format!("用户对{to}不过敏。")) } else { ("yes", format!("用户对{to}过敏。")) };
            fact(&format!("allergy:{to}"), value.to_owned(), |_| content)
        }),
        rule(Health, format!(r"{I}(?P<not>不再|不)?(?:是|吃)(?:个|一个|一名)?(?P<v>素食主义者|素食者|纯素|素|全素|清真)(?:的|了|，|,|。|！|$)"), |p| {
            let eats = if p.get("v") == "清真" { "清真" } else { "素" };
            if p.get("not").is_empty() {
                fact("diet", eats.to_owned(), |v| format!("用户吃{v}。"))
            } else {
                fact("diet", format!("不{eats}"), |_| format!("用户不再吃{eats}。"))
            }
        }),
        rule(Health, format!(r"{I}(?:是|有|患有)?(?:个)?(?P<v>色盲|色弱|左撇子|乳糖不耐受?|哮喘|糖尿病|近视|阅读障碍|多动症|注意力缺陷)"), |p| {
            let condition = p.get("v");
            fact(&format!("condition:{condition}"), "yes".to_owned(), |_| format!("用户的身体情况：{condition}。"))
        }),
        rule(Language, r"我的?母语是(?P<v>[\p{Han}]{2,6})".to_owned(), |p| {
            fact("native language", clean(p.get("v"))?, |v| format!("用户的母语是{v}。"))
        }),
        rule(Language, format!(r"{I}(?:会说|会讲|能说)(?:一点儿?|一些|流利的)?(?P<v>[\p{{Han}}、和]{{2,16}}[语文话])"), |p| {
            fact(&format!("speaks:{}", p.get("v")), "yes".to_owned(), |_| format!("用户会说{}。", p.get("v")))
        }),
        rule(Language, format!(r"{I}(?P<not>不|没在?|停止|放弃)?(?:在学习?|正在学习?|开始学习?|开始自学|在自学|自学|学习?|再学)(?:了)?(?P<v>[\p{{Han}}]{{1,5}}[语文]|钢琴|吉他|小提琴|古筝|编程|[A-Z][A-Za-z+#]*|围棋|书法|画画)(?:了|，|,|。|！|$)"), |p| {
            let what = p.get("v");
            if p.get("not").is_empty() {
                fact(&format!("learns:{what}"), "yes".to_owned(), |_| format!("用户在学{what}。"))
            } else {
                fact(&format!("learns:{what}"), "no".to_owned(), |_| format!("用户不再学{what}。"))
            }
        }),
        rule(Preference, format!(r"{I}(?:喜欢|爱)的(?P<s>[\p{{Han}}]{{1,8}}?)(?:是|变成了?|换成了?)(?P<v>.+)"), |p| {
            let subject = p.get("s");
            fact(&format!("favourite:{subject}"), clean(p.get("v"))?, |v| format!("用户最喜欢的{subject}是{v}。")).filter(|_| p.0.get(0).is_some_and(|all| all.as_str().contains('最')))
        }),
        rule(Preference, format!(r"{I}(?:习惯|习惯于)(?:了)?(?P<v>.+)"), |p| {
            let what = rewritten(p.get("v"))?;
            fact(&format!("habit:{}", time_of(&what)), what.clone(), |v| format!("用户习惯{v}。")).filter(|_| !is_vague(&what))
        }),
        rule(Preference, r"我(?:平时|一般|通常|总是|都|只能|现在)+(?P<v>(?:在)?(?:早上|上午|中午|下午|晚上|深夜|夜里|周末|睡前|饭后)(?:才|都|会)?(?:学习|复习|看书|做题|写作业|背单词))".to_owned(), |p| {
            fact("habit:study", clean(p.get("v"))?, |v| format!("用户一般{v}。"))
        }),
        rule(Preference, format!(r"{I}(?:不(?:太|怎么|是很|大|再)?(?:喜欢|爱|爱好)|讨厌|厌恶|受不了|反感|没那么喜欢)(?:了)?(?P<v>.+)"), |p| taste(p, false)),
        rule(Preference, format!(r"{I}(?:喜欢|喜爱|热爱|爱上了|爱|偏好|偏爱|钟爱|倾向于|着迷于|对(?P<w>[\p{{Han}}A-Za-z]{{1,12}}?)(?:很|特别|非常|比较|挺|真的)?(?:感兴趣|有兴趣))(?:上了)?(?P<v>.*)"), |p| taste(p, true)),
        rule(Skill, format!(r"{I}(?:分不清楚?|搞混|混淆|弄混|搞不清楚?|弄不清楚?|记混)(?:了)?(?P<v>.+)"), |p| {
            let what = clean(p.get("v"))?;
            fact(&format!("skill:{what}"), "weak".to_owned(), |_| format!("用户常常分不清{what}。")).filter(|_| !is_vague(&what))
        }),
        rule(Skill, format!(r"(?:{I}(?P<not>不)?(?:太|怎么)?擅长(?P<v>.+)|我的?(?P<w>[\p{{Han}}A-Za-z]{{1,10}}?)(?:成绩|基础|能力)?(?:一直|比较|很|特别|非常|有点|太|不太|不|挺|蛮)*(?P<x>不好|很差|太差|弱|差|薄弱|不行|拖后腿|强|很好))(?:了|，|,|。|！|$)"), |p| {
            let what = clean(if p.get("v").is_empty() { p.get("w") } else { p.get("v") })?;
            let is_weak = !p.get("not").is_empty() || !(p.get("x").is_empty() || matches!(p.get("x"), "强" | "很好"));
            let no_skill = ["心情", "身体", "运气", "态度", "网", "电脑", "手机", "状态", "天气"].iter().any(|word| what.contains(word));
            let (value, content) = if is_weak { ("weak", format!("用户的弱项是{what}。")) } else { ("strong", format!("用户擅长{what}。")) };
            fact(&format!("skill:{what}"), value.to_owned(), |_| content).filter(|_| !no_skill && !is_vague(&what))
        }),
        rule(Skill, format!(r"{I}(?:觉得|感觉)(?P<v>[\p{{Han}}A-Za-z]{{2,12}}?)(?:很|特别|非常|太|比较|真的|好)+难"), |p| {
            let what = p.get("v");
            fact(&format!("skill:{what}"), "weak".to_owned(), |_| format!("用户觉得{what}很难。")).filter(|_| !is_vague(what))
        }),
        rule(Goal, r"我(?:现在|今年|新|最大|最近|的|这学期|长期)*(?:目标|梦想|理想|志向|愿望)(?:现在)?(?:是|改成了?|变成了?|换成了?)(?P<v>.+)".to_owned(), |p| {
            fact("goal", rewritten(p.get("v"))?, |v| format!("用户的目标是{v}。"))
        }),
        rule(Goal, format!(r"{I}(?:想要?|打算|计划|希望(?:自己)?(?:能够?)?|准备|决定|立志|要)(?:以后|将来|毕业后|明年|今年|年底前?)?(?P<v>(?:考(?:上|进|入|到|取|研|公|博|级|雅思|托福|四级|六级|教师|[\p{{Han}}A-Za-z]{{2,10}}证)?|当|成为|做一[名个]|出国|留学|去[\p{{Han}}]{{2,6}}(?:留学|读研|读书|上大学|工作)|申请|通过|读研|读博|转专业|转行|学会|保研|拿到|获得|提高[\p{{Han}}]{{2,8}}).*)"), |p| {
            let goal = rewritten(p.get("v"))?;
            let is = |beginnings: &[&str]| beginnings.iter().any(|beginning| goal.starts_with(beginning));
            let subject = if is(&["当", "成为", "做一"]) {
                "goal:career".to_owned()
            } else if is(&["考上", "考进", "考入", "申请", "考取"]) {
                "goal:school".to_owned()
            } else {
                format!("goal:{goal}")
            };
            let is_short = goal.chars().count() >= 2;
            fact(&subject, goal.clone(), |v| format!("用户想{v}。")).filter(|_| is_short && !is_vague(&goal))
        }),
        rule(Relation, format!(r"{I}(?:家)?(?:里)?(?:有|养了?)(?:了)?(?P<v>(?P<c>[一两二三四五六\d]+)(?:只|条|个|位)(?:[\p{{Han}}]{{0,4}}?)(?P<n>猫|狗|兔子|仓鼠|鹦鹉|妹妹|弟弟|哥哥|姐姐|孩子|儿子|女儿|双胞胎))"), |p| {
            fact(&format!("has:{}", p.get("n")), p.get("v").to_owned(), |v| format!("用户有{v}。"))
        }),
        rule(Relation, format!(r"我(?:的|家)?(?P<s>猫|狗|兔子|妹妹|弟弟|哥哥|姐姐|儿子|女儿|女朋友|男朋友|老婆|老公|妻子|丈夫|老师|班主任|同桌|室友)(?:的名字)?(?:叫|是叫)(?P<v>[\p{{Han}}]{{2,4}}?|[A-Za-z]{{2,20}}){END}"), |p| {
            let who = p.get("s");
            fact(&format!("name of:{who}"), p.get("v").to_owned(), |v| format!("用户的{who}叫{v}。")).filter(|_| !p.get("v").contains('我'))
        }),
    ])
});

/// An event with a day.
static EVENT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = [
        r"(?:我|我们|的|有|要|参加|是|^|，|,)(?:个|一个|一场|一门|一次|要|有|参加|的|考)*(?P<s>[\p{Han}A-Za-z\d]{0,8}?(?:期中考试?|期末考试?|模拟考试?|月考|考试|测验|小测|面试|答辩|比赛|竞赛|雅思|托福|[四六]级(?:考试)?|高考|中考|考研|截止|HSK|演讲|汇报|论文))",
        r"|要?考(?P<t>[\p{Han}A-Za-z]{2,8}?)(?:了|，|,|。|！|$)",
    ]
    .concat();
    Regex::new(&pattern).ok()
});

/// What is found in a sentence.
pub(super) fn find(sentence: &str, today: Date) -> Vec<Found> {
    if NOT_SO.as_ref().is_none_or(|not_so| not_so.is_match(sentence)) {
        return Vec::new();
    }
    // A statement goes before a question in one sentence: 我对花生过敏，吃什么好？
    let asks = |part: &str| ASKS.as_ref().is_none_or(|asks| asks.is_match(part));
    let end = sentence.split_inclusive(['，', ',']).take_while(|part| !asks(part)).map(str::len).sum();
    let sentence = &sentence[..end];
    if let Some(event) = event(sentence, today) {
        return vec![event];
    }
    clauses(sentence).into_iter().filter_map(|(clause, quote)| read(&RULES, &clause, &quote)).collect()
}

fn event(sentence: &str, today: Date) -> Option<Found> {
    let (date, words) = temporal::upcoming_day(sentence, today)?;
    let is_others = SOMEBODY_ELSE.as_ref().is_none_or(|somebody| somebody.is_match(sentence));
    if is_others || date < today {
        return None;
    }
    // Without the day, what is before and after it stands together: 我下周五有高数考试.
    let rest = sentence.replacen(words, "", 1);
    let found = EVENT.as_ref()?.captures(&rest)?;
    let event = match (found.name("s"), found.name("t")) {
        (Some(event), _) => event.as_str().trim_start_matches(['我', '的', '有', '要', '个', '在']).to_owned(),
        (_, Some(subject)) => format!("{}考试", subject.as_str()),
        _ => return None,
    };
    let is_mine = rest.contains('我') || rest.starts_with(event.as_str());
    let day = date.strftime("%Y年%-m月%-d日").to_string();
    (is_mine && event.chars().count() > 1).then(|| Found {
        kind: FactKind::Event,
        subject: folded(&format!("event:{event}")),
        value: date.to_string(),
        content: format!("用户的{event}在{day}。"),
        date: Some(date),
        quote: sentence.to_owned(),
    })
}

/// The parts of a sentence that are about the user, each as it would stand alone, with the words that it is made from.
fn clauses(sentence: &str) -> Vec<(String, String)> {
    let (Some(lead), Some(continuation), Some(somebody)) =
        (LEAD.as_ref(), CONTINUATION.as_ref(), SOMEBODY_ELSE.as_ref())
    else {
        return Vec::new();
    };
    let mut clauses = Vec::new();
    let mut is_about_me = false;
    for part in sentence.split(['，', ',', '；', '：', '。', '！', '!', '…']) {
        let quote = part.trim();
        let said = &quote[lead.find(quote).map_or(0, |lead| lead.end())..];
        if said.is_empty() {
            continue;
        }
        let is_call =
            ["叫我", "请叫我", "你可以叫我", "可以叫我", "称呼我", "大家都叫我", "朋友都叫我", "朋友们都叫我"]
                .iter()
                .any(|call| said.starts_with(call));
        let is_relation = said.starts_with('我') && said.contains('叫');
        if said.starts_with("我们") || (somebody.is_match(said) && !is_relation) {
            is_about_me = false;
        } else if said.starts_with('我') || is_call {
            is_about_me = true;
            clauses.push((said.to_owned(), quote.to_owned()));
        } else if is_about_me && continuation.is_match(said) {
            clauses.push((format!("我{said}"), quote.to_owned()));
        }
    }
    clauses
}

fn fact(subject: &str, value: String, content: impl FnOnce(&str) -> String) -> Option<Reading> {
    let content = content(&value);
    Reading::new(subject, &value, content)
}

fn taste(parts: &Parts<'_>, likes: bool) -> Option<Reading> {
    let what = rewritten(if parts.get("w").is_empty() { parts.get("v") } else { parts.get("w") })?;
    if is_vague(&what) || what.starts_with('的') {
        return None;
    }
    let verb = if likes { "喜欢" } else { "不喜欢" };
    fact(&format!("taste:{what}"), verb.to_owned(), |_| format!("用户{verb}{what}。"))
}

/// The part of a sentence that a rule took, without the particles at its end.
fn clean(text: &str) -> Option<String> {
    static STOP: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"(?:[，,。！!；;：（(…]|因为|所以|但是|不过|而且|然后).*$").ok());
    let text = STOP.as_ref()?.replace(text, "");
    let text = text.trim().trim_end_matches(['了', '啦', '呀', '哦', '啊', '吧', '呢', '的', '~', '～', '.', ' ']);
    (!text.is_empty()).then(|| text.to_owned())
}

/// The part with the user as the third person.
fn rewritten(text: &str) -> Option<String> {
    Some(clean(text)?.replace("我自己", "自己").replace('我', "自己"))
}

/// Whether it says nothing without what was said around it, or is about the assistant.
fn is_vague(text: &str) -> bool {
    let begins =
        ["这", "那", "它", "他", "她", "上面", "上述", "刚才", "后者", "前者", "第一", "第二", "以上", "所有", "一切"];
    let holds = ["你", "您", "今天", "现在这", "刚刚"];
    begins.iter().any(|word| text.starts_with(word)) || holds.iter().any(|word| text.contains(word))
}

/// Habits of the same time take each other's place.
fn time_of(habit: &str) -> &str {
    let times = ["早上", "上午", "中午", "下午", "晚上", "深夜", "夜里", "周末", "睡前"];
    if times.iter().any(|time| habit.contains(time))
        && ["学", "复习", "看书", "做题"].iter().any(|word| habit.contains(word))
    {
        "study"
    } else {
        habit
    }
}

/// How many rules there are, for a test.
#[cfg(test)]
pub(super) fn rules() -> usize {
    RULES.len()
}
