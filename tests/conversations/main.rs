#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]
#![expect(clippy::large_futures, reason = "a test has few calls at a time")]

mod admission;
mod costs;
#[cfg(feature = "dynamodb")]
mod dynamodb;
#[cfg(feature = "dynamodb")]
mod dynamodb_internals;
mod fixture;
mod isolation;
mod lost_runs;
mod migration_locks;
mod pending;
#[path = "../postgres/mod.rs"]
mod postgres;
mod postgres_internals;
mod previous_program;
mod quotas;
mod readers;
mod retention;
mod runs;
mod sessions;
mod upkeep;

macro_rules! try_with {
    ($kind:ident, $($topic:ident: $($case:ident)+;)+) => {
        mod $kind {
            $(mod $topic {
                $(#[tokio::test]
                async fn $case() {
                    if let Some(fixture) = crate::fixture::$kind().await {
                        crate::$topic::$case(&fixture).await;
                    }
                })+
            })+
        }
    };
}

/// Runs each case with every kind of store, named as the function of `fixture.rs` that makes it.
macro_rules! cases {
    ($($list:tt)+) => {
        try_with!(in_postgres, $($list)+);
        #[cfg(feature = "dynamodb")]
        try_with!(in_dynamodb, $($list)+);
    };
}

cases! {
    admission:
        admit_returns_the_stored_profile
        known_request_is_not_started_again
        resuming_request_starts_no_run
        session_has_one_run_at_a_time
        concurrent_equal_requests_start_once
        concurrent_requests_of_session_start_once
        revoked_admission_leaves_nothing
        request_expires_after_idempotency_window;
    lost_runs:
        session_is_taken_over_after_lease_expiry
        lost_request_starts_again
        lost_request_restarted_elsewhere_frees_its_session
        expired_lease_is_good_until_taken_over
        run_without_session_has_its_own_lease
        resumed_turn_of_lost_run_resumes_again;
    quotas:
        requests_count_per_minute
        revoked_admission_does_not_count
        streams_count_while_their_lease_lasts
        tokens_count_per_day
        quota_holds_under_concurrent_requests
        quotas_are_checked_last_and_in_order;
    runs:
        frames_are_read_after_any_number
        frames_are_read_in_pages_of_any_size
        retried_chunk_replaces_itself
        megabytes_are_stored_byte_for_byte
        sizes_near_bounds_are_stored_whole
        finish_is_idempotent
        concurrent_finishes_store_one_turn
        repeatable_run_starts_again
        cancel_by_request_or_session_stops_run
        concurrent_calls_neither_fail_nor_deadlock;
    readers:
        unread_run_is_asked_to_end
        read_run_keeps_its_session
        session_without_other_run_is_free
        session_of_unresponsive_owner_is_taken_over
        reader_that_came_back_was_not_asked_to_give_way
        one_of_two_readers_of_another_process_leaves
        reader_of_another_process_counts_until_it_leaves
        follow_marks_run_as_watched_for_a_while;
    pending:
        last_tool_result_resumes_turn
        concurrent_tool_results_have_one_last
        tool_result_retry_of_same_request_is_no_duplicate
        last_tool_result_is_busy_while_session_is_held
        run_holding_the_session_resumes_its_turn
        reopened_turn_takes_its_last_result_again
        pending_turn_replaces_that_of_its_session
        pending_turns_expire_and_are_limited
        pending_turn_calls_require_the_lease;
    sessions:
        session_exists_from_its_first_turn
        session_pages_are_complete_and_latest_first
        turn_pages_are_latest_first
        history_fits_the_token_budget
        generated_title_replaces_only_provisional_title
        update_of_absent_session_is_ignored
        delete_removes_everything_of_sessions
        delete_all_removes_everything_of_user
        used_quotas_survive_deletion
        delete_beside_finish_is_atomic
        delete_beside_run_without_session_is_atomic;
    isolation:
        users_are_isolated;
}
