# Create a sandbox that expires after 1 hour
with client.sandbox(
    snapshot_id=snapshot_id,
    ttl_seconds=3600,
) as sb:
    result = sb.run("echo hello")

# Create a sandbox that expires after 10 min of inactivity
sb = client.create_sandbox(
    snapshot_id=snapshot_id,
    idle_ttl_seconds=600,
)

# Combine both: 2-hour max lifetime, 15-min idle timeout
sb = client.create_sandbox(
    snapshot_id=snapshot_id,
    ttl_seconds=7200,
    idle_ttl_seconds=900,
)

# Check expiration
print(sb.ttl_seconds)       # 7200
print(sb.idle_ttl_seconds)  # 900
print(sb.expires_at)        # e.g. "2026-03-24T14:00:00Z"
