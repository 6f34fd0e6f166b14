# Extend the idle timeout to 30 minutes
sb = client.update_sandbox("my-sandbox", idle_ttl_seconds=1800)

# Disable the absolute TTL (sandbox runs indefinitely, idle TTL still applies)
sb = client.update_sandbox("my-sandbox", ttl_seconds=0)

# Update name and TTL together
sb = client.update_sandbox(
    "my-sandbox",
    new_name="my-sandbox-v2",
    ttl_seconds=3600,
)
