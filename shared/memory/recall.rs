//! Retrieval for a turn: as [`MemoryEngine::retrieve`], without earlier questions in the way of knowledge.

use tokio::time::{Instant, timeout_at};

use super::{
    Filter, Memory, MemoryEngine, MemoryError, RetrievalQuery,
    own_questions::{Question, is_own_question},
};
use crate::identity::UserId;

/// Hits that each search of a recall asks for. The first search allows for memories that do not count. The others run only if
/// it found too few that do, for example for a user who has asked the same question for months.
const SEARCH_LIMITS: [usize; 3] = [24, 200, 1_000];

impl MemoryEngine {
    /// Best first, without echoes of the question. It has the limit of the query of hits that are no questions and that
    /// `counts` accepts, if there are so many, and all hits between them: [`select_hits`] chooses from it. A search that
    /// fails or reaches `deadline` is an error if it is the first; otherwise the hits of the one before are returned.
    pub async fn recall(
        &self,
        user: &UserId,
        query: &RetrievalQuery,
        deadline: Instant,
        counts: impl Fn(&Memory) -> bool,
    ) -> Result<Vec<(Memory, f32)>, MemoryError> {
        let question = Question::new(&query.text);
        let is_without_documents = query.filter == Filter::without_documents();
        let mut hits = None;
        for search in searches(query) {
            let found = match timeout_at(deadline, Box::pin(self.retrieve(user, &search))).await {
                Ok(Ok(found)) => found.hits,
                Ok(Err(error)) => return hits.ok_or(error),
                Err(_) => return hits.ok_or(MemoryError::Timeout),
            };
            let is_exhausted = found.len() < search.limit;
            let is_hit = |memory: &Memory| {
                !question.is_echoed_by(memory) && (!is_without_documents || memory.location.is_none())
            };
            let found: Vec<_> = found.into_iter().filter(|(memory, _)| is_hit(memory)).collect();
            let counted = found.iter().filter(|(memory, _)| counts(memory) && !is_own_question(memory)).count();
            hits = Some(found);
            if counted >= query.limit || is_exhausted {
                break;
            }
        }
        Ok(hits.unwrap_or_default())
    }
}

/// The searches to try until one finds enough. A filter makes a search score every memory, so that one without documents is
/// tried without the filter first: mostly the best hits are not all chunks.
fn searches(query: &RetrievalQuery) -> impl Iterator<Item = RetrievalQuery> {
    let unfiltered = (query.filter == Filter::without_documents()).then(|| RetrievalQuery {
        limit: SEARCH_LIMITS[0].max(query.limit),
        filter: Filter::default(),
        ..query.clone()
    });
    let filtered = SEARCH_LIMITS.map(|limit| RetrievalQuery { limit: limit.max(query.limit), ..query.clone() });
    unfiltered.into_iter().chain(filtered)
}

/// The best hits, best first. The user's questions take only the places that knowledge leaves.
#[must_use]
pub fn select_hits(mut hits: Vec<(Memory, f32)>, limit: usize) -> Vec<(Memory, f32)> {
    let are_questions: Vec<bool> = hits.iter().map(|(memory, _)| is_own_question(memory)).collect();
    let knowledge = are_questions.iter().filter(|is_question| !**is_question).count();
    let mut places = (limit.saturating_sub(limit.min(knowledge)), limit.min(knowledge));
    let mut are_questions = are_questions.into_iter();
    hits.retain(|_| {
        let left = if are_questions.next().unwrap_or_default() { &mut places.0 } else { &mut places.1 };
        let is_selected = *left > 0;
        *left = left.saturating_sub(1);
        is_selected
    });
    hits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::CHAT_SOURCE_TYPE;

    fn hit(id: &str, content: &str) -> (Memory, f32) {
        (Memory { id: id.into(), ..Memory::example(CHAT_SOURCE_TYPE, content) }, 0.5)
    }

    #[test]
    fn questions_take_only_places_that_knowledge_leaves() {
        let hits = || {
            let question = |id| hit(id, "what about eigenvalues?");
            let statement = |id| hit(id, "I mix up eigenvalues");
            vec![question("q1"), statement("s1"), question("q2"), statement("s2"), question("q3")]
        };
        let selected =
            |limit| -> Vec<String> { select_hits(hits(), limit).into_iter().map(|(memory, _)| memory.id).collect() };
        assert_eq!(selected(1), ["s1"]);
        assert_eq!(selected(2), ["s1", "s2"]);
        assert_eq!(selected(3), ["q1", "s1", "s2"]);
        assert_eq!(selected(9), ["q1", "s1", "q2", "s2", "q3"]);
    }
}
