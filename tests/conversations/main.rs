//! What every store of conversations has to do, tried with each of them.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod admission;
#[cfg(feature = "dynamodb")]
mod behind_dynamodb;
mod behind_postgres;
#[cfg(feature = "dynamodb")]
mod dynamodb;
mod isolation;
mod limits;
mod pending;
mod place;
#[path = "../postgres/mod.rs"]
mod postgres;
mod runs;
mod sessions;
mod take_over;

/// Tries all cases with the stores of one kind.
macro_rules! try_with {
    ($kind:ident, $($topic:ident: $($case:ident)+;)+) => {
        mod $kind {
            $(mod $topic {
                $(#[tokio::test]
                async fn $case() {
                    // None where this kind can not be had.
                    if let Some(place) = crate::place::$kind().await {
                        crate::$topic::$case(&place).await;
                    }
                })+
            })+
        }
    };
}

/// Tries all cases with every kind of stores: one line for each, named as the function of `place.rs` that makes one.
macro_rules! cases {
    ($($list:tt)+) => {
        try_with!(in_postgres, $($list)+);
        #[cfg(feature = "dynamodb")]
        try_with!(in_dynamodb, $($list)+);
    };
}

cases! {
    admission:
        a_request_starts_and_is_told_the_profile
        a_known_request_is_not_started_again
        a_request_that_goes_on_starts_nothing
        a_conversation_has_one_run_at_a_time
        of_many_equal_requests_one_is_started
        of_many_requests_in_a_conversation_one_is_started
        an_admission_that_is_taken_back_leaves_nothing
        a_request_is_forgotten_after_a_week;
    take_over:
        a_conversation_goes_to_the_next_request_when_its_holder_dies
        a_request_whose_process_died_is_started_anew
        a_request_that_is_started_anew_elsewhere_leaves_its_conversation
        a_lease_that_expired_is_good_until_somebody_takes_it
        a_run_beside_a_conversation_lives_and_dies_by_itself
        a_turn_that_went_on_is_lost_with_its_run;
    limits:
        requests_are_counted_by_the_minute
        an_admission_that_is_taken_back_does_not_count
        streams_are_counted_while_they_live
        tokens_are_counted_by_the_day
        a_limit_is_kept_however_many_ask_at_once
        limits_come_after_everything_else_and_in_their_order;
    runs:
        frames_can_be_read_from_any_of_them_on
        frames_that_come_again_take_their_own_place
        megabytes_come_back_byte_for_byte
        sizes_near_every_bound_come_back_whole
        an_end_that_is_told_twice_is_kept_once
        ends_that_come_at_once_are_kept_once
        a_run_that_came_to_nothing_is_repeated
        whoever_looks_is_seen_for_a_while
        a_run_can_be_stopped_by_its_request_or_its_conversation
        whatever_happens_at_once_ends_well;
    pending:
        results_are_taken_until_the_last_one_goes_on_with_the_turn
        of_results_that_come_at_once_one_is_the_last
        a_result_whose_answer_was_lost_may_come_again
        the_last_result_waits_for_the_conversation
        a_run_that_has_the_conversation_goes_on_with_its_turn
        a_turn_that_failed_can_be_gone_on_with_again
        a_turn_takes_the_place_of_another_one_that_waits
        a_turn_waits_for_a_day_and_twenty_wait_at_most
        what_waits_is_kept_by_whoever_has_the_lease_alone;
    sessions:
        a_conversation_is_there_from_its_first_turn_on
        pages_show_each_conversation_once_the_latest_first
        turns_come_page_by_page_the_latest_first
        a_model_is_told_the_last_turns_within_a_budget
        a_title_of_the_model_replaces_the_provisional_one_alone
        what_is_found_out_about_nothing_is_not_kept
        conversations_are_deleted_with_everything_of_them
        all_of_a_user_can_be_deleted
        what_was_used_counts_although_all_is_deleted
        a_deletion_beside_an_end_leaves_nothing_by_halves
        a_deletion_beside_a_run_without_the_lease_leaves_nothing_by_halves;
    isolation:
        users_have_nothing_in_common;
}
