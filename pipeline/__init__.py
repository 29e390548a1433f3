"""What every stage stands on: params, their check, the resume state, and the parts that stages put together."""
