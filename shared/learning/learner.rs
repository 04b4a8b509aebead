//! One turn: remembered, searched for facts, and made part of what the conversation is called and summed up by.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Exchange, Extractor, Fact, FactRejection, FactStatus, HISTORY_TOKENS, KnownFact, LearnError, ModelExtractor,
    ModelSummarizer, RuleExtractor, RuleSummarizer, SUMMARIZE_ABOVE_TOKENS, SUMMARIZE_TO_TOKENS, Statement, Summarizer,
    guard, own_words::own_words, verbatim,
};
use crate::{
    chat::TurnRecord,
    config::{Config, LearningConfig, ModelConfig},
    conversation::{ConversationStore, SessionUpdate, StoredTurn, Summary},
    identity::{SessionId, UserId},
    language::Language,
    llm::ChatModel,
    memory::{DEFAULT_ALPHA, Filter, MemoryEngine, NewMemory, RetrievalQuery, TurnMemories, TurnWriteOutcome},
};

/// What kind of source a fact is.
const FACT: &str = "fact";
/// Known facts that are looked up by one topic.
const KNOWN_BY_TOPIC: usize = 5;
/// Most known facts that an extractor is given.
const MOST_KNOWN: usize = 20;
/// Most topics that are looked up.
const MOST_TOPICS: usize = 8;
/// Turns that are read at once to be summed up.
const PAGE: usize = 20;
/// Most turns that one summary takes in. Where nobody summed up for longer, what is before is left out.
const MOST_TURNS: usize = 100;

/// Learns from turns.
pub struct TurnLearner {
    memory: Arc<MemoryEngine>,
    conversations: Arc<dyn ConversationStore>,
    narrator: Arc<dyn Summarizer>,
    /// `None` = turns are remembered and nothing is looked for in them.
    extractor: Option<Arc<dyn Extractor>>,
    /// Whether anything is put into the memory.
    remembers: bool,
}

/// What was learned from a turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtractionOutcome {
    /// Memories of the turn, word for word.
    pub memories: usize,
    /// Facts that are new or take the place of others.
    pub facts: usize,
    /// Of these, those that take the place of others.
    pub superseding: usize,
    /// Facts that were known already.
    pub duplicates: usize,
    /// Facts that take the place of what the user said later, because their turn was late: they are left out.
    pub outdated: usize,
    /// What an extractor gave and the user did not say.
    pub unsupported: usize,
    /// What an extractor gave and is an instruction.
    pub instructions: usize,
    /// Whether nothing was to be learned: it was before, or the user had everything forgotten since.
    pub was_settled: bool,
    /// Whether the conversation got a title.
    pub titled: bool,
    /// Whether a part of the conversation was summed up.
    pub summarized: bool,
}

impl TurnLearner {
    /// The one that the configuration asks for: by a model or, in demo mode, by rules.
    #[must_use]
    pub fn from_config(
        config: &Config,
        memory: Arc<MemoryEngine>,
        conversations: Arc<dyn ConversationStore>,
        model: Arc<dyn ChatModel>,
    ) -> Self {
        let (extractor, narrator): (Arc<dyn Extractor>, Arc<dyn Summarizer>) = match config.model {
            ModelConfig::Demo(_) => (Arc::new(RuleExtractor), Arc::new(RuleSummarizer)),
            ModelConfig::Provider(_) => {
                (Arc::new(ModelExtractor::new(model.clone())), Arc::new(ModelSummarizer::new(model)))
            }
        };
        let learner = Self::new(memory, conversations, extractor, narrator);
        match config.learning {
            LearningConfig::On => learner,
            LearningConfig::Verbatim => learner.verbatim_only(),
            LearningConfig::Off => learner.without_memory(),
        }
    }

    /// One that remembers turns in this memory and finds facts in them, and finds words for these conversations.
    #[must_use]
    pub fn new(
        memory: Arc<MemoryEngine>,
        conversations: Arc<dyn ConversationStore>,
        extractor: Arc<dyn Extractor>,
        narrator: Arc<dyn Summarizer>,
    ) -> Self {
        Self { memory, conversations, narrator, extractor: Some(extractor), remembers: true }
    }

    /// The same that remembers word for word and finds no facts.
    #[must_use]
    pub fn verbatim_only(self) -> Self {
        Self { extractor: None, ..self }
    }

    /// The same that puts nothing into the memory.
    #[must_use]
    pub fn without_memory(self) -> Self {
        Self { extractor: None, remembers: false, ..self }
    }

    /// Learns from a turn. The same turn again changes nothing.
    ///
    /// # Errors
    /// Something failed, after which what was done stays done; the same call goes on with the rest.
    pub async fn learn(
        &self,
        user: &UserId,
        session: &SessionId,
        turn: &StoredTurn,
    ) -> Result<ExtractionOutcome, LearnError> {
        let record = TurnRecord::from_bytes(&turn.record)?;
        let mut learned = ExtractionOutcome::default();
        let remembered = self.remember(user, session, turn, &record, &mut learned).await;
        let noted = self.narrate(user, session, turn, &record, &mut learned).await;
        remembered?;
        noted?;
        Ok(learned)
    }

    async fn remember(
        &self,
        user: &UserId,
        session: &SessionId,
        turn: &StoredTurn,
        record: &TurnRecord,
        learned: &mut ExtractionOutcome,
    ) -> Result<(), LearnError> {
        let (request, said_at) = (&turn.request, turn.created_at);
        if !self.remembers || !self.memory.is_configured() {
            return Ok(());
        }
        if self.memory.is_turn_settled(user, session, request, said_at).await? {
            learned.was_settled = true;
            return Ok(());
        }
        let memories = verbatim::memories(session, turn, record);
        let lesson =
            TurnMemories { session, request, turn_ended_at: said_at, memories, is_final: self.extractor.is_none() };
        match self.memory.add_turn_memories(user, lesson).await? {
            TurnWriteOutcome::Added(added) => learned.memories = added.added,
            TurnWriteOutcome::AlreadyExtracted | TurnWriteOutcome::UserErased => {
                learned.was_settled = true;
                return Ok(());
            }
        }
        let Some(extractor) = &self.extractor else { return Ok(()) };
        let facts = self.facts(&**extractor, user, turn, record).await?;
        let memories = memories_of(facts, session, turn, learned);
        let facts = memories.len();
        let lesson = TurnMemories { session, request, turn_ended_at: said_at, memories, is_final: true };
        match self.memory.add_turn_memories(user, lesson).await? {
            TurnWriteOutcome::Added(_) => learned.facts = facts,
            TurnWriteOutcome::AlreadyExtracted | TurnWriteOutcome::UserErased => learned.was_settled = true,
        }
        Ok(())
    }

    /// The facts in a turn, each with what stands against it.
    async fn facts(
        &self,
        extractor: &dyn Extractor,
        user: &UserId,
        turn: &StoredTurn,
        record: &TurnRecord,
    ) -> Result<Vec<(Fact, Result<(), Rejection>)>, LearnError> {
        let words = own_words(record.question().unwrap_or_default());
        // Nobody who wants to take over is a source, in whatever else they say.
        if !words.contains(char::is_alphanumeric) || guard::is_take_over(&words) {
            return Ok(Vec::new());
        }
        let language = Language::detect(&words);
        let said = Statement { text: words, language, said_at: turn.created_at, zone: record.zone() };
        let known = self.known(user, &said, &extractor.topics(&said)).await?;
        let facts = extractor.extract(&said, &known).await?;
        let said_later = |id: &String| known.iter().any(|known| known.id == *id && known.said_at > said.said_at);
        let checked = |fact: Fact| {
            let standing = match &fact.status {
                FactStatus::Supersedes(old) if old.iter().any(said_later) => Err(Rejection::Outdated),
                _ => fact.check(&said).map_err(Rejection::Refused),
            };
            (fact, standing)
        };
        Ok(facts.into_iter().map(checked).collect())
    }

    /// Facts that are known and may be what is spoken of, each once.
    async fn known(&self, user: &UserId, said: &Statement, topics: &[String]) -> Result<Vec<KnownFact>, LearnError> {
        let mut known: BTreeMap<String, (KnownFact, f32)> = BTreeMap::new();
        for topic in topics.iter().take(MOST_TOPICS).filter(|topic| !topic.trim().is_empty()) {
            let query = RetrievalQuery {
                text: topic.clone(),
                limit: KNOWN_BY_TOPIC,
                min_score: 0.0,
                filter: Filter { source_types: vec![FACT.to_owned()], ..Filter::default() },
                alpha: DEFAULT_ALPHA,
                time_zone: said.zone.clone(),
            };
            for (memory, score) in self.memory.retrieve(user, &query).await?.hits {
                let fact = KnownFact {
                    id: memory.id.clone(),
                    content: memory.content,
                    said_at: memory.created_at,
                    metadata: memory.metadata,
                };
                let best = known.entry(memory.id).or_insert((fact, score));
                best.1 = best.1.max(score);
            }
        }
        let mut known: Vec<_> = known.into_values().collect();
        known.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        Ok(known.into_iter().take(MOST_KNOWN).map(|(fact, _)| fact).collect())
    }

    /// Gives a new conversation a title, and sums up the beginning of one that has grown long.
    async fn narrate(
        &self,
        user: &UserId,
        session: &SessionId,
        turn: &StoredTurn,
        record: &TurnRecord,
        learned: &mut ExtractionOutcome,
    ) -> Result<(), LearnError> {
        if turn.seq == 1 && self.is_untitled(user, session, record).await? {
            let title = self.narrator.generate_title(&Exchange::from_record(record)).await?;
            self.conversations.update_session(user, session, &SessionUpdate::Title(title)).await?;
            learned.titled = true;
        }
        let summary = self.conversations.load_history(user, session, HISTORY_TOKENS).await?.summary;
        let through = summary.as_ref().map_or(0, |summary| summary.through);
        let mut turns = self.turns_after(user, session, through).await?;
        let tokens = |turns: &[StoredTurn]| turns.iter().fold(0_u32, |sum, turn| sum.saturating_add(turn.tokens));
        if tokens(&turns) <= SUMMARIZE_ABOVE_TOKENS {
            return Ok(());
        }
        // The last one stays in any case: it is what the next question is about.
        let left =
            (1..turns.len()).find(|from| tokens(&turns[*from..]) <= SUMMARIZE_TO_TOKENS).unwrap_or(turns.len() - 1);
        turns.truncate(left);
        let Some(last) = turns.last() else { return Ok(()) };
        let through = last.seq;
        let spoken: Vec<Exchange> = turns
            .iter()
            // One that can not be read is left out, rather than that nothing is ever summed up again.
            .filter_map(|turn| TurnRecord::from_bytes(&turn.record).ok())
            .map(|record| Exchange::from_record(&record))
            .filter(|spoken| !spoken.user.is_empty())
            .collect();
        let before = summary.map(|summary| summary.text).unwrap_or_default();
        let text = self.narrator.summarize(&before, &spoken).await?;
        self.conversations.update_session(user, session, &SessionUpdate::Summary(Summary { text, through })).await?;
        learned.summarized = true;
        Ok(())
    }

    /// Whether a conversation has the title that it began with, and something was said that it could be called by.
    async fn is_untitled(&self, user: &UserId, session: &SessionId, first: &TurnRecord) -> Result<bool, LearnError> {
        let says_something = first.question().unwrap_or_default().contains(char::is_alphanumeric);
        let session = if says_something { self.conversations.get_session(user, session).await? } else { None };
        Ok(session.is_some_and(|session| session.title == first.provisional_title()))
    }

    /// The turns after one, oldest first.
    async fn turns_after(
        &self,
        user: &UserId,
        session: &SessionId,
        through: u32,
    ) -> Result<Vec<StoredTurn>, LearnError> {
        let mut turns: Vec<StoredTurn> = Vec::new();
        while turns.len() < MOST_TURNS {
            let before = turns.last().map(|turn| turn.seq);
            let page = self.conversations.list_turns(user, session, before, PAGE).await?;
            let is_last = page.len() < PAGE || page.iter().any(|turn| turn.seq <= through);
            turns.extend(page.into_iter().filter(|turn| turn.seq > through));
            if is_last {
                break;
            }
        }
        turns.reverse();
        Ok(turns)
    }
}

/// Why a fact is left out.
enum Rejection {
    Refused(FactRejection),
    /// Something was said later that it would replace.
    Outdated,
}

/// The memories of those facts that are to be kept; the others are counted.
fn memories_of(
    facts: Vec<(Fact, Result<(), Rejection>)>,
    session: &SessionId,
    turn: &StoredTurn,
    learned: &mut ExtractionOutcome,
) -> Vec<NewMemory> {
    let mut memories: Vec<NewMemory> = Vec::new();
    for (fact, checked) in facts {
        match checked {
            Ok(()) => {}
            Err(Rejection::Outdated) => {
                learned.outdated += 1;
                continue;
            }
            Err(Rejection::Refused(FactRejection::Instruction)) => {
                learned.instructions += 1;
                continue;
            }
            Err(Rejection::Refused(FactRejection::Unsupported | FactRejection::Malformed)) => {
                learned.unsupported += 1;
                continue;
            }
        }
        let supersedes = match fact.status {
            FactStatus::Duplicate(_) => {
                learned.duplicates += 1;
                continue;
            }
            FactStatus::Supersedes(old) => {
                learned.superseding += 1;
                old
            }
            FactStatus::New => Vec::new(),
        };
        let content = fact.content.trim().to_owned();
        let id = format!("fact-{}", verbatim::digest(&[session.as_str(), turn.request.as_str(), &content]));
        let mut metadata = fact.metadata;
        // Not as the memory names a conversation: a fact is no turn of it, which would be understood by the turns before it.
        metadata.extend(verbatim::reference("source_session_id", session, turn));
        if let Some(date) = fact.date {
            metadata.insert("date".to_owned(), date.to_string());
        }
        memories.push(NewMemory {
            id: Some(id),
            content,
            source_type: FACT.to_owned(),
            tags: vec![fact.kind.tag().to_owned()],
            created_at: Some(turn.created_at),
            metadata,
            supersedes,
        });
    }
    memories
}
