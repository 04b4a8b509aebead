select count(*) < $22
       or greatest($15, (select score from scored order by score desc, id offset $17 - 1 limit 1)) > min(upper)
from scored
