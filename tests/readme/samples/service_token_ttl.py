# Token valid for 1 hour
svc = sb.service(port=3000, expires_in_seconds=3600)
