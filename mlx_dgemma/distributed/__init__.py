"""Several processes, on several machines or one, that write together: how they meet, agree, and end together."""
