//! The SQL of a search. All variants have the same parameters and columns, so that they are bound and read alike.

use pgvector::Vector;
use sqlx::AssertSqlSafe;

use super::{columns, knn::VectorIndex, matches_filter, with_documents};

/// Postings that one search reads.
const POSTINGS_BUDGET: &str = "50000";

const STATE: &str = include_str!("sql/search_state.sql");
const TERMS: &str = include_str!("sql/search_terms.sql");
const POSTINGS: &str = include_str!("sql/search_postings.sql");
const NO_POSTINGS: &str = "select null as id, null::float8 as x where false";
const LEXICAL: &str = include_str!("sql/search_lexical.sql");
const EXACT: &str = include_str!("sql/search_exact.sql");
const CANDIDATES: &str = include_str!("sql/search_candidates.sql");
const LEXICAL_CANDIDATES: &str = "(select id from lexical order by score desc, id limit $21)";
const NO_CANDIDATES: &str = "select null where false";
const HYBRID_SCORE: &str = "
    select id, $14 * coalesce(vectors.score, 0) + (1 - $14) * coalesce(lexical.score, 0) as score
    from vectors full join lexical using (id)";
const HALF: &str = include_str!("sql/search_half.sql");
const BEST: &str = include_str!("sql/search_best.sql");
const BEST_IS_COMPLETE: &str = include_str!("sql/search_best_complete.sql");
const TOTAL_OF_BEST: &str = include_str!("sql/search_total_of_best.sql");

const OR_TERMS: &str = " union select id from ({postings}) as terms";

const ALL_IDS_AND_SCORES: &str = "select id, score::real as score from scored";
const MATCHING_IDS_AND_SCORES: &str = concat!(
    "select memories.id, least(1, scored.score + case when exists (
         select from unnest($18::timestamptz[], $19::timestamptz[]) as span (first, after)
         where memories.created_at >= first and memories.created_at < after
     ) then $20 else 0 end)::real as score
     from scored join memories on memories.user_id = $1 and memories.id = scored.id
     where memories.superseded_by is null and ",
    matches_filter!()
);

#[derive(Debug, Clone, Copy)]
pub(super) enum Strategy<'a> {
    /// Scores the memories that can be among the best. A vector is needed, and no filter, bonus, or floor above which
    /// matches are counted.
    Best,
    /// Scores every memory that either retriever finds.
    All,
    /// Scores the candidates of the HNSW index and of the lexical retriever.
    Index(&'a VectorIndex),
}

#[derive(Debug)]
pub(crate) enum SearchMode {
    Lexical,
    Vector(Vector),
    Hybrid(Vector),
}

impl SearchMode {
    pub(crate) fn is_lexical(&self) -> bool {
        matches!(self, Self::Lexical | Self::Hybrid(_))
    }

    pub(crate) fn vector(&self) -> Option<&Vector> {
        match self {
            Self::Lexical => None,
            Self::Vector(vector) | Self::Hybrid(vector) => Some(vector),
        }
    }

    /// Without the lexical retriever. `None`: nothing is left.
    pub(crate) fn into_vector(self) -> Option<Self> {
        match self {
            Self::Lexical => None,
            Self::Vector(vector) | Self::Hybrid(vector) => Some(Self::Vector(vector)),
        }
    }
}

pub(super) struct Statement<'a> {
    pub(super) mode: &'a SearchMode,
    pub(super) strategy: Strategy<'a>,
    /// Columns of the memories decide on a hit or its score.
    pub(super) reads_memories: bool,
    pub(super) counts_matches: bool,
}

impl Statement<'_> {
    pub(super) fn sql(&self) -> AssertSqlSafe<String> {
        let mut ctes = vec![STATE.to_owned()];
        if self.mode.is_lexical() {
            ctes.push(TERMS.to_owned());
        }
        let (total, candidates, is_complete) = match self.strategy {
            Strategy::Best => {
                ctes.extend([HALF, BEST].map(str::to_owned));
                let total = if self.counts_matches { TOTAL_OF_BEST } else { "null::bigint" };
                (total, "null::bigint", BEST_IS_COMPLETE)
            }
            Strategy::All => {
                self.push_all(&mut ctes, None);
                ("(select count(*) from hits)", "null::bigint", "true")
            }
            Strategy::Index(index) => {
                self.push_all(&mut ctes, Some(index));
                ("(select count(*) from hits)", "(select count(*) from nearest)", "true")
            }
        };
        let statement = format!(
            concat!(
                "with {ctes} select ",
                columns!(),
                ", best.score, {total} as total, {candidates} as candidates, ({is_complete}) as is_complete,
                 state.is_indexed, state.is_small
                 from state left join (best join ",
                with_documents!("memories on memories.user_id = $1 and memories.id = best.id"),
                ") on true order by best.score desc, best.id"
            ),
            ctes = ctes.join(", "),
            total = total,
            candidates = candidates,
            is_complete = is_complete,
        );
        let (is_searched, postings, or_terms) = match self.mode {
            SearchMode::Vector(_) => ("is_small", NO_POSTINGS, ""),
            SearchMode::Lexical | SearchMode::Hybrid(_) => ("is_small and is_indexed", POSTINGS, OR_TERMS),
        };
        AssertSqlSafe(
            statement
                .replace("{or_terms}", or_terms)
                .replace("{postings}", postings)
                .replace("{budget}", POSTINGS_BUDGET)
                .replace("{is_searched}", is_searched),
        )
    }

    fn push_all(&self, ctes: &mut Vec<String>, index: Option<&VectorIndex>) {
        let is_lexical = self.mode.is_lexical();
        if is_lexical {
            ctes.push(LEXICAL.to_owned());
        }
        if self.mode.vector().is_some() {
            match index {
                Some(index) => {
                    ctes.push(index.candidates_cte());
                    let lexical = if is_lexical { LEXICAL_CANDIDATES } else { NO_CANDIDATES };
                    ctes.push(CANDIDATES.replace("{lexical_candidates}", lexical));
                }
                None => ctes.push(EXACT.to_owned()),
            }
        }
        let fusion = match self.mode {
            SearchMode::Lexical => "select id, score from lexical",
            SearchMode::Vector(_) => "select id, score from vectors",
            SearchMode::Hybrid(_) => HYBRID_SCORE,
        };
        let matching = if self.reads_memories { MATCHING_IDS_AND_SCORES } else { ALL_IDS_AND_SCORES };
        ctes.push(format!(
            "scored as ({fusion}), matching as ({matching}),
             hits as (select * from matching where score >= $15 order by score desc, id limit $16),
             best as (select id, score from hits order by score desc, id limit $17)"
        ));
    }
}
