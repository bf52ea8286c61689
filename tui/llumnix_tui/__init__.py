"""Terminal interface of llumnix; of llumnix itself it imports only admin.schema."""
