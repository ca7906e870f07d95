"""Reports: pages, tables and figures made from results files alone."""
