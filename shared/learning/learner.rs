//! Learns from one turn: writes its memories and facts, then the session's title and summary.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    error::LearnError,
    fact::{Extractor, Fact, FactRejection, FactStatus, KnownFact, Statement},
    limits::{SUMMARIZE_ABOVE_TOKENS, SUMMARIZE_TO_TOKENS},
    summarizer::{Exchange, Summarizer},
    verbatim,
};
use crate::{
    chat::TurnRecord,
    conversation::{ConversationStore, SessionUpdate, StoredTurn, Summary},
    facts::{is_override, own_words},
    identity::{SessionId, UserId},
    language::Language,
    memory::{DEFAULT_ALPHA, Filter, MemoryEngine, NewMemory, RetrievalQuery, TurnMemories, TurnWriteOutcome},
};

const FACT: &str = "fact";
const KNOWN_FACTS_PER_TOPIC: usize = 5;
const MAX_KNOWN_FACTS: usize = 20;
/// Budget of tokens: the summary comes with the last turn at least.
const SUMMARY_ONLY: u32 = 1;
const MAX_TOPICS: usize = 8;
const TURNS_PAGE: usize = 20;
/// Per summary. Older turns that were never summarized are skipped.
const MAX_SUMMARIZED_TURNS: usize = 100;

pub struct TurnLearner {
    memory: Arc<MemoryEngine>,
    conversations: Arc<dyn ConversationStore>,
    summarizer: Arc<dyn Summarizer>,
    /// `None` = turns are stored verbatim only.
    extractor: Option<Arc<dyn Extractor>>,
    writes_memories: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtractionOutcome {
    /// Verbatim memories that were added.
    pub memories: usize,
    /// Facts that were added, including `superseding`.
    pub facts: usize,
    pub superseding: usize,
    pub duplicates: usize,
    pub outdated: usize,
    /// Facts that the user did not say or that are malformed.
    pub unsupported: usize,
    pub instructions: usize,
    /// The turn was learned from before, or the user erased their data since.
    pub was_settled: bool,
    pub titled: bool,
    pub summarized: bool,
}

#[derive(Clone, Copy)]
struct LearningTurn<'a> {
    user: &'a UserId,
    session: &'a SessionId,
    turn: &'a StoredTurn,
    record: &'a TurnRecord,
}

impl<'a> LearningTurn<'a> {
    fn memories(&self, memories: Vec<NewMemory>, is_final: bool) -> TurnMemories<'a> {
        let Self { session, turn, .. } = *self;
        TurnMemories { session, request: &turn.request, turn_ended_at: turn.created_at, memories, is_final }
    }
}

impl TurnLearner {
    #[must_use]
    pub fn new(
        memory: Arc<MemoryEngine>,
        conversations: Arc<dyn ConversationStore>,
        extractor: Arc<dyn Extractor>,
        summarizer: Arc<dyn Summarizer>,
    ) -> Self {
        Self { memory, conversations, summarizer, extractor: Some(extractor), writes_memories: true }
    }

    #[must_use]
    pub fn verbatim_only(self) -> Self {
        Self { extractor: None, ..self }
    }

    #[must_use]
    pub fn without_memory(self) -> Self {
        Self { extractor: None, writes_memories: false, ..self }
    }

    /// Idempotent: learning from the same turn again changes nothing. Steps before a failed one stay done, and a retry
    /// resumes with the rest.
    pub async fn learn(
        &self,
        user: &UserId,
        session: &SessionId,
        turn: &StoredTurn,
    ) -> Result<ExtractionOutcome, LearnError> {
        let record = TurnRecord::from_bytes(&turn.record)?;
        let context = LearningTurn { user, session, turn, record: &record };
        let mut outcome = ExtractionOutcome::default();
        // A failed extraction does not keep the session from its title.
        let memories = self.write_memories(context, &mut outcome).await;
        let session = self.update_session(context, &mut outcome).await;
        memories?;
        session?;
        Ok(outcome)
    }

    /// Writes the verbatim memories first, so that they survive a failed extraction, and marks the turn with the facts.
    async fn write_memories(
        &self,
        context: LearningTurn<'_>,
        outcome: &mut ExtractionOutcome,
    ) -> Result<(), LearnError> {
        let LearningTurn { user, session, turn, record } = context;
        if !self.writes_memories || !self.memory.is_configured() {
            return Ok(());
        }
        if Box::pin(self.memory.is_turn_settled(user, session, &turn.request, turn.created_at)).await? {
            outcome.was_settled = true;
            return Ok(());
        }
        let verbatim = verbatim::turn_memories(session, turn, record);
        let verbatim = context.memories(verbatim, self.extractor.is_none());
        match Box::pin(self.memory.add_turn_memories(user, verbatim)).await? {
            TurnWriteOutcome::Added(added) => outcome.memories = added.added,
            TurnWriteOutcome::AlreadyExtracted | TurnWriteOutcome::UserErased => {
                outcome.was_settled = true;
                return Ok(());
            }
        }
        let Some(extractor) = &self.extractor else { return Ok(()) };
        let facts = self.extract_facts(&**extractor, context).await?;
        let facts = facts_to_memories(facts, context, outcome);
        let count = facts.len();
        match Box::pin(self.memory.add_turn_memories(user, context.memories(facts, true))).await? {
            TurnWriteOutcome::Added(_) => outcome.facts = count,
            TurnWriteOutcome::AlreadyExtracted | TurnWriteOutcome::UserErased => outcome.was_settled = true,
        }
        Ok(())
    }

    async fn extract_facts(
        &self,
        extractor: &dyn Extractor,
        LearningTurn { user, turn, record, .. }: LearningTurn<'_>,
    ) -> Result<Vec<(Fact, Result<(), FactRejection>)>, LearnError> {
        let text = own_words(record.question().unwrap_or_default());
        if !text.contains(char::is_alphanumeric) || is_override(&text) {
            return Ok(Vec::new());
        }
        let language = Language::detect(&text);
        let statement = Statement { text, language, said_at: turn.created_at, zone: record.zone() };
        let known = self.known_facts(user, &statement, &extractor.topics(&statement)).await?;
        let facts = extractor.extract(&statement, &known).await?;
        let is_later = |id: &String| known.iter().any(|fact| fact.id == *id && fact.said_at > statement.said_at);
        let checked = |fact: Fact| {
            let result = match &fact.status {
                FactStatus::Supersedes(ids) if ids.iter().any(is_later) => Err(FactRejection::Outdated),
                _ => fact.check(&statement),
            };
            (fact, result)
        };
        Ok(facts.into_iter().map(checked).collect())
    }

    async fn known_facts(
        &self,
        user: &UserId,
        statement: &Statement,
        topics: &[String],
    ) -> Result<Vec<KnownFact>, LearnError> {
        let mut known: BTreeMap<String, (KnownFact, f32)> = BTreeMap::new();
        for topic in topics.iter().take(MAX_TOPICS).filter(|topic| !topic.trim().is_empty()) {
            let query = RetrievalQuery {
                text: topic.clone(),
                limit: KNOWN_FACTS_PER_TOPIC,
                min_score: 0.0,
                filter: Filter { source_types: vec![FACT.to_owned()], ..Filter::default() },
                alpha: DEFAULT_ALPHA,
                time_zone: statement.zone.clone(),
                counts_matches: false,
            };
            for (memory, score) in Box::pin(self.memory.retrieve(user, &query)).await?.hits {
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
        Ok(known.into_iter().take(MAX_KNOWN_FACTS).map(|(fact, _)| fact).collect())
    }

    async fn update_session(
        &self,
        LearningTurn { user, session, turn, record }: LearningTurn<'_>,
        outcome: &mut ExtractionOutcome,
    ) -> Result<(), LearnError> {
        if turn.seq == 1 && self.needs_title(user, session, record).await? {
            let title = self.summarizer.generate_title(&Exchange::from_record(record)).await?;
            self.conversations.update_session(user, session, &SessionUpdate::Title(title)).await?;
            outcome.titled = true;
        }
        let previous = self.conversations.load_history(user, session, SUMMARY_ONLY).await?.summary;
        let through = previous.as_ref().map_or(0, |summary| summary.through);
        let turns = turns_to_summarize(self.list_turns_after(user, session, through).await?);
        let Some(last) = turns.last() else { return Ok(()) };
        let through = last.seq;
        let exchanges: Vec<Exchange> = turns
            .iter()
            // An unreadable record is skipped: an error would block every later summary of the session.
            .filter_map(|turn| TurnRecord::from_bytes(&turn.record).ok())
            .map(|record| Exchange::from_record(&record))
            .filter(|exchange| !exchange.user.is_empty())
            .collect();
        let previous = previous.map(|summary| summary.text).unwrap_or_default();
        let text = self.summarizer.summarize(&previous, &exchanges).await?;
        self.conversations.update_session(user, session, &SessionUpdate::Summary(Summary { text, through })).await?;
        outcome.summarized = true;
        Ok(())
    }

    /// Whether the session still has its provisional title, and its first message has words to derive one from.
    async fn needs_title(&self, user: &UserId, session: &SessionId, first: &TurnRecord) -> Result<bool, LearnError> {
        if !first.question().unwrap_or_default().contains(char::is_alphanumeric) {
            return Ok(false);
        }
        let session = self.conversations.get_session(user, session).await?;
        Ok(session.is_some_and(|session| session.title == first.provisional_title()))
    }

    /// Oldest first.
    async fn list_turns_after(
        &self,
        user: &UserId,
        session: &SessionId,
        through: u32,
    ) -> Result<Vec<StoredTurn>, LearnError> {
        let mut turns: Vec<StoredTurn> = Vec::new();
        while turns.len() < MAX_SUMMARIZED_TURNS {
            let before = turns.last().map(|turn| turn.seq);
            let page = self.conversations.list_turns(user, session, before, TURNS_PAGE).await?;
            let is_last = page.len() < TURNS_PAGE || page.iter().any(|turn| turn.seq <= through);
            turns.extend(page.into_iter().filter(|turn| turn.seq > through));
            if is_last {
                break;
            }
        }
        turns.reverse();
        Ok(turns)
    }
}

/// The oldest of the unsummarized turns if those exceed their budget. Never the last turn: the next question refers to it.
fn turns_to_summarize(mut turns: Vec<StoredTurn>) -> Vec<StoredTurn> {
    let tokens = |turns: &[StoredTurn]| turns.iter().fold(0_u32, |sum, turn| sum.saturating_add(turn.tokens));
    if tokens(&turns) <= SUMMARIZE_ABOVE_TOKENS {
        return Vec::new();
    }
    let first_left = (1..turns.len()).find(|from| tokens(&turns[*from..]) <= SUMMARIZE_TO_TOKENS);
    turns.truncate(first_left.unwrap_or(turns.len() - 1));
    turns
}

fn facts_to_memories(
    facts: Vec<(Fact, Result<(), FactRejection>)>,
    LearningTurn { session, turn, .. }: LearningTurn<'_>,
    outcome: &mut ExtractionOutcome,
) -> Vec<NewMemory> {
    let mut memories: Vec<NewMemory> = Vec::new();
    for (fact, checked) in facts {
        if let Err(rejection) = checked {
            match rejection {
                FactRejection::Outdated => outcome.outdated += 1,
                FactRejection::Instruction => outcome.instructions += 1,
                FactRejection::Unsupported | FactRejection::Malformed => outcome.unsupported += 1,
            }
            continue;
        }
        let supersedes = match fact.status {
            FactStatus::Duplicate(_) => {
                outcome.duplicates += 1;
                continue;
            }
            FactStatus::Supersedes(ids) => {
                outcome.superseding += 1;
                ids
            }
            FactStatus::New => Vec::new(),
        };
        let content = fact.content.trim().to_owned();
        let id = format!("fact-{}", verbatim::digest(&[session.as_str(), turn.request.as_str(), &content]));
        let mut metadata = fact.metadata;
        // Not under `session_id`: a fact is no part of the transcript and needs no turns before it to be understood.
        metadata.extend(verbatim::source_metadata("source_session_id", session, turn));
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
