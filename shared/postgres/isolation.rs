use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use super::{error::DatabaseError, role::Role};

/// Whether the role bypasses row-level security, tables with a user's id that do not force it, tables it owns, other
/// service roles it inherits, and policies that the migrations did not create.
const WEAKNESSES: &str = "
    with ours as (
        select policyname, tablename from pg_policies
        cross join lateral (
            select array(select unnest(roles)::text order by 1) as granted,
                   -- Postgres releases print casts and aliases differently.
                   regexp_replace(qual, '[[:space:]]|::text|AS current_setting', '', 'g') as seen,
                   regexp_replace(with_check, '[[:space:]]|::text|AS current_setting', '', 'g') as taken
        ) as plain
        where schemaname = 'public' and permissive = 'PERMISSIVE' and (
            policyname = 'own_rows' and cmd = 'ALL' and granted = array['agent_reader', 'agent_service']
                and seen = '(user_id=(SELECTcurrent_setting(''agent.user_id'',true)))' and taken = seen
            or policyname = 'every_id' and cmd = 'SELECT' and granted = array['agent_maintenance'] and seen = 'true'
                and tablename in ('memories', 'memory_vectors', 'memory_users', 'learning_jobs', 'retention_queue')
            or tablename = 'retention_queue' and policyname = 'own_rows' and cmd = 'ALL' and granted = array['agent_service']
                and seen = '(owner_id=(SELECTcurrent_setting(''agent.user_id'',true)))' and taken = seen)
    ), users_tables as (
        select relname::text, relowner, relrowsecurity and relforcerowsecurity as is_protected
        from pg_class
        where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace
              and exists (select from pg_attribute
                          where attrelid = pg_class.oid and attname in ('user_id', 'owner_id') and not attisdropped)
    )
    select (select rolsuper or rolbypassrls from pg_roles where rolname = current_user) as bypasses,
           array(select relname from users_tables where not is_protected) as unprotected,
           array(select relname from users_tables where pg_has_role(relowner, 'usage')) as owned,
           array(select other from unnest(array['agent_service', 'agent_reader', 'agent_maintenance']) as other
                 where other <> current_user and pg_has_role(other, 'usage')) as mixed,
           array(select policyname || ' on ' || tablename from pg_policies join users_tables on relname = tablename
                 where schemaname = 'public' and (policyname, tablename) not in (select * from ours)) as foreign_policies";

pub(super) async fn check(connection: &mut PgConnection, role: Role) -> Result<(), DatabaseError> {
    let not_isolated = |reason: String| Err(DatabaseError::NotIsolated(reason));
    let name = role.name();
    let mut transaction = match connection.begin_with(AssertSqlSafe(role.begin(&[]))).await {
        Ok(transaction) => transaction,
        // invalid_parameter_value: the role does not exist; insufficient_privilege: it is not granted.
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("22023" | "42501")) => {
            return not_isolated(format!(
                "the login may not act as {name}: run `agent-local migrate` with DATABASE_ADMIN_URL"
            ));
        }
        Err(error) => return Err(error.into()),
    };
    // The simple query protocol: some poolers allow no prepared statement.
    let row = sqlx::raw_sql(WEAKNESSES).fetch_one(&mut *transaction).await?;
    let list = |column| row.try_get::<Vec<String>, _>(column).map(|tables| tables.join(", "));
    let (unprotected, owned) = (list("unprotected")?, list("owned")?);
    let (mixed, foreign_policies) = (list("mixed")?, list("foreign_policies")?);
    if row.try_get("bypasses")? {
        return not_isolated(format!(
            "the role {name} bypasses row-level security: `alter role {name} nosuperuser nobypassrls`"
        ));
    }
    if !unprotected.is_empty() {
        return not_isolated(format!(
            "row-level security is not forced on {unprotected}: `alter table … force row level security`"
        ));
    }
    if !owned.is_empty() {
        return not_isolated(format!("the role {name} owns {owned}: make the login that migrates their owner"));
    }
    if !mixed.is_empty() {
        return not_isolated(format!("the role {name} inherits the rights of {mixed}: `revoke {mixed} from {name}`"));
    }
    if !foreign_policies.is_empty() {
        return not_isolated(format!(
            "policies that the migrations did not create expose rows: {foreign_policies}; drop them"
        ));
    }
    transaction.rollback().await?;
    Ok(())
}
