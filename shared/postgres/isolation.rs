//! Refuses a database that could show one user's rows to another.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use super::{DatabaseError, Role};

/// What stands against isolation: whether the effective role bypasses row-level security, which tables with users' rows are
/// not protected, which of them the role owns, which other roles' rights it has, and which policies are not ours.
const WEAKNESSES: &str = "
    with ours as (
        select policyname, tablename from pg_policies
        cross join lateral (
            select array(select unnest(roles)::text order by 1) as granted,
                   -- Without what releases write differently.
                   regexp_replace(qual, '[[:space:]]|::text|AS current_setting', '', 'g') as seen,
                   regexp_replace(with_check, '[[:space:]]|::text|AS current_setting', '', 'g') as taken
        ) as plain
        where schemaname = 'public' and permissive = 'PERMISSIVE' and (
            policyname = 'own_rows' and cmd = 'ALL' and granted = array['agent_reader', 'agent_service']
                and seen = '(user_id=(SELECTcurrent_setting(''agent.user_id'',true)))' and taken = seen
            or policyname = 'every_id' and cmd = 'SELECT' and granted = array['agent_maintenance'] and seen = 'true'
                and tablename in ('memories', 'memory_vectors', 'memory_users', 'learning_jobs'))
    ), users_tables as (
        select relname::text, relowner, relrowsecurity and relforcerowsecurity as is_protected
        from pg_class
        where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace
              and exists (select from pg_attribute
                          where attrelid = pg_class.oid and attname = 'user_id' and not attisdropped)
    )
    select (select rolsuper or rolbypassrls from pg_roles where rolname = current_user) as bypasses,
           array(select relname from users_tables where not is_protected) as unprotected,
           array(select relname from users_tables where pg_has_role(relowner, 'usage')) as owned,
           array(select other from unnest(array['agent_service', 'agent_reader', 'agent_maintenance']) as other
                 where other <> current_user and pg_has_role(other, 'usage')) as mixed,
           array(select policyname || ' on ' || tablename from pg_policies join users_tables on relname = tablename
                 where schemaname = 'public' and (policyname, tablename) not in (select * from ours)) as foreign_policies";

/// Checks that a login which acts as a role is held to one user's rows.
///
/// # Errors
/// [`DatabaseError::NotIsolated`] says what is wrong and what would be right.
pub(super) async fn check(connection: &mut PgConnection, role: Role) -> Result<(), DatabaseError> {
    let refused = |why: String| Err(DatabaseError::NotIsolated(why));
    let name = role.name();
    let mut transaction = match connection.begin_with(AssertSqlSafe(role.begin(&[]))).await {
        Ok(transaction) => transaction,
        // The role does not exist, or is not granted.
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("22023" | "42501")) => {
            return refused(format!(
                "its login may not act as {name}; run `agent-local migrate` with DATABASE_ADMIN_URL"
            ));
        }
        Err(error) => return Err(error.into()),
    };
    // The simple protocol, which needs no named statement.
    let row = sqlx::raw_sql(WEAKNESSES).fetch_one(&mut *transaction).await?;
    let list = |column| row.try_get::<Vec<String>, _>(column).map(|tables| tables.join(", "));
    let (unprotected, owned) = (list("unprotected")?, list("owned")?);
    let (mixed, foreign_policies) = (list("mixed")?, list("foreign_policies")?);
    if row.try_get("bypasses")? {
        return refused(format!(
            "the role {name} bypasses row-level security: `alter role {name} nosuperuser nobypassrls`"
        ));
    }
    if !unprotected.is_empty() {
        return refused(format!(
            "row-level security is not forced on {unprotected}: `alter table … force row level security`"
        ));
    }
    if !owned.is_empty() {
        return refused(format!("the role {name} owns {owned}: let the login that migrates own them"));
    }
    if !mixed.is_empty() {
        return refused(format!("the role {name} has the rights of {mixed}: `revoke {mixed} from {name}`"));
    }
    if !foreign_policies.is_empty() {
        return refused(format!("policies that are not the service's let rows be seen: {foreign_policies}; drop them"));
    }
    transaction.rollback().await?;
    Ok(())
}
